//! Projects and their quotas.

use axum::extract::State;
use axum::{Extension, Json};
use guise_api::{ApiError, NewProject, Page, Paging, Project, Quota};

use super::answer::{Answer, Body, MadeAnswer, Name, Query, made};
use super::guard::Caller;
use super::{App, check_name};

fn check(quota: &Quota) -> Result<(), ApiError> {
    match quota.vcpus {
        Some(vcpus) if !vcpus.is_finite() || vcpus < 0.0 => {
            Err(ApiError::invalid(format!("{vcpus} processors are no limit")))
        }
        _ => Ok(()),
    }
}

/// The projects that the caller may look at.
#[utoipa::path(
    get, path = "/v1/projects", params(Paging),
    responses((status = 200, body = Page<Project>))
)]
pub async fn list(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Query(paging): Query<Paging>,
) -> Answer<Page<Project>> {
    let revision = daemon.objects.revision()?;
    let all = daemon.objects.projects().map_err(ApiError::internal)?.into_iter();
    let seen = all.filter(|project| caller.identity.role_in(&project.name).is_some()).collect();
    Ok(Json(paging.of(seen, revision, |project| project.name.clone())))
}

/// Makes a project, unless there is one of this name and with this quota already.
#[utoipa::path(
    post, path = "/v1/projects", request_body = NewProject,
    responses(
        (status = 200, body = Project), (status = 400, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn create(
    State(daemon): State<App>,
    Body(asked): Body<NewProject>,
) -> MadeAnswer<Project> {
    check_name(&asked.name)?;
    check(&asked.quota)?;
    let project = daemon.objects.create_project(&asked.name, asked.quota).await?;
    daemon.events.of_host("project", &project.name, &project.name, "created");
    made(&asked.name, project)
}

/// Gives a project another quota. What its instances have already they keep.
#[utoipa::path(
    put, path = "/v1/projects/{name}", params(("name" = String, Path)), request_body = Quota,
    responses(
        (status = 200, body = Project), (status = 400, body = ApiError),
        (status = 404, body = ApiError),
    )
)]
pub async fn change(
    State(daemon): State<App>,
    Name(name): Name,
    Body(quota): Body<Quota>,
) -> Answer<Project> {
    check_name(&name)?;
    check(&quota)?;
    let project = daemon.objects.set_quota(&name, quota).await?;
    daemon.events.of_host("project", &name, &name, "changed");
    Ok(Json(project))
}

/// Removes a project that has nothing.
#[utoipa::path(
    delete, path = "/v1/projects/{name}", params(("name" = String, Path)),
    responses((status = 200), (status = 404, body = ApiError), (status = 409, body = ApiError))
)]
pub async fn remove(State(daemon): State<App>, Name(name): Name) -> Answer<()> {
    check_name(&name)?;
    daemon.objects.remove_project(&name).await?;
    daemon.events.of_host("project", &name, &name, "removed");
    Ok(Json(()))
}
