//! Named networks.

use axum::extract::State;
use axum::{Extension, Json};
use guise_api::{ApiError, Code, NamedNetwork, NewNetwork, Page, Paging};
use guise_container::state::timestamp;

use super::App;
use super::answer::{Answer, Body, MadeAnswer, Name, Query, Refused, made};
use super::guard::Caller;
use crate::named::Named;
use crate::networks;

fn complete(daemon: &App, mut network: NamedNetwork) -> NamedNetwork {
    let named = Named::new(&network.project, &network.name);
    network.used_by = daemon
        .table
        .all()
        .iter()
        .map(|entry| entry.instance())
        .filter(|instance| Named::network_of(instance).is_some_and(|plugged| plugged == named))
        .map(|instance| instance.name.clone())
        .collect();
    network
}

/// Named networks of the project.
#[utoipa::path(
    get, path = "/v1/networks", params(Paging),
    responses((status = 200, body = Page<NamedNetwork>))
)]
pub async fn list(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Query(paging): Query<Paging>,
) -> Answer<Page<NamedNetwork>> {
    let revision = daemon.objects.revision()?;
    let all = daemon.objects.networks().map_err(ApiError::internal)?.into_iter();
    let seen = all.filter(|network| caller.sees(&network.project));
    let whole = seen.map(|network| complete(&daemon, network)).collect();
    Ok(Json(
        paging
            .of(whole, revision, |network| Named::new(&network.project, &network.name).to_string()),
    ))
}

fn check(daemon: &App, named: &Named) -> Result<(), ApiError> {
    // A socket's path has at most 107 bytes, and the name is in it twice.
    let nameless = Named::new(&named.project, "");
    let room = 106_usize.saturating_sub(daemon.config.switch(&nameless).as_os_str().len()) / 2;
    let name = &named.name;
    guise_net::ipam::check_name(name).map_err(|error| ApiError::invalid(error.to_string()))?;
    if name.len() > room {
        return Err(ApiError::invalid(format!("{name} is too long for a network's name"))
            .hint(format!("here it may have {room} letters")));
    }
    Ok(())
}

/// Makes a network, unless there is one of this name, and with this subnet, already.
#[utoipa::path(
    post, path = "/v1/networks", request_body = NewNetwork,
    responses(
        (status = 200, body = NamedNetwork), (status = 400, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn create(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<NewNetwork>,
) -> MadeAnswer<NamedNetwork> {
    let NewNetwork { name, subnet } = asked;
    let named = Named::new(caller.project, name.clone());
    check(&daemon, &named)?;
    if let Some(network) = daemon.objects.network(&named)? {
        return existing(&daemon, network, subnet.as_deref());
    }
    let folder = daemon.config.networks(&named.project);
    let (of, wanted) = (name.clone(), subnet.clone());
    let begin = move || networks::begin_book(&folder, &of, wanted.as_deref());
    let chosen = tokio::task::spawn_blocking(begin).await.map_err(ApiError::internal)??;
    let network = NamedNetwork {
        name: name.clone(),
        project: named.project.clone(),
        created: timestamp(),
        subnet: chosen.to_string(),
        used_by: Vec::new(),
    };
    match daemon.objects.create_network(&network).await {
        // Somebody else has made it in between.
        Err(error) if error.code == Code::Conflict => {}
        other => other?,
    }
    daemon.events.named("network", &named, "created");
    made(&name, network)
}

fn existing(daemon: &App, network: NamedNetwork, subnet: Option<&str>) -> MadeAnswer<NamedNetwork> {
    if subnet.is_some_and(|subnet| subnet != network.subnet) {
        let NamedNetwork { name, subnet, .. } = &network;
        return Err(Refused(
            ApiError::new(Code::Conflict, format!("network {name} has {subnet} already"))
                .hint(format!("choose another name, or remove it: guise network rm {name}")),
        ));
    }
    made(&network.name.clone(), complete(daemon, network))
}

/// Removes a network that no instance is plugged into.
#[utoipa::path(
    delete, path = "/v1/networks/{name}", params(("name" = String, Path)),
    responses((status = 200), (status = 404, body = ApiError), (status = 409, body = ApiError))
)]
pub async fn remove(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
) -> Answer<()> {
    super::check_name(&name)?;
    let named = Named::new(caller.project, name);
    let name = &named.name;
    let network = daemon.objects.network(&named)?.ok_or_else(|| {
        ApiError::new(Code::NotFound, format!("there is no network {name}"))
            .hint("guise network ls lists them")
    })?;
    if let Some(user) = complete(&daemon, network).used_by.first() {
        return Err(Refused(
            ApiError::new(Code::State, format!("network {name} is used by instance {user}"))
                .hint(format!("remove the instance first: guise rm {user}")),
        ));
    }
    daemon.networks.end(&daemon, &named).await;
    daemon.objects.remove_network(&named).await?;
    networks::end_book(&daemon.config.networks(&named.project), name)?;
    networks::remove_folder(&daemon.config.switch(&named));
    daemon.events.named("network", &named, "removed");
    Ok(Json(()))
}
