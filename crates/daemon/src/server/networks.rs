//! Named networks.

use axum::Json;
use axum::extract::{Path, State};
use guise_api::{ApiError, Code, NamedNetwork, NewNetwork};
use guise_container::state::timestamp;

use super::App;
use super::answer::{Answer, Body, Refused};
use crate::networks;

fn complete(daemon: &App, mut network: NamedNetwork) -> NamedNetwork {
    network.used_by = daemon
        .table
        .all()
        .iter()
        .map(|entry| entry.instance())
        .filter(|instance| instance.spec.join.as_ref() == Some(&network.name))
        .map(|instance| instance.name.clone())
        .collect();
    network
}

#[utoipa::path(get, path = "/v1/networks", responses((status = 200, body = Vec<NamedNetwork>)))]
pub async fn list(State(daemon): State<App>) -> Answer<Vec<NamedNetwork>> {
    let all = daemon.objects.networks().map_err(ApiError::internal)?;
    Ok(Json(all.into_iter().map(|network| complete(&daemon, network)).collect()))
}

fn check(daemon: &App, name: &str) -> Result<(), ApiError> {
    // A socket's path has at most 107 bytes, and the name is in it twice.
    let room = 106_usize.saturating_sub(daemon.config.switch("").as_os_str().len()) / 2;
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
    Body(asked): Body<NewNetwork>,
) -> Answer<NamedNetwork> {
    let NewNetwork { name, subnet } = asked;
    check(&daemon, &name)?;
    if let Some(network) = daemon.objects.network(&name)? {
        return existing(&daemon, network, subnet.as_deref());
    }
    let (folder, of, wanted) = (daemon.config.networks(), name.clone(), subnet.clone());
    let begin = move || networks::begin_book(&folder, &of, wanted.as_deref());
    let chosen = tokio::task::spawn_blocking(begin).await.map_err(ApiError::internal)??;
    let network = NamedNetwork {
        name: name.clone(),
        created: timestamp(),
        subnet: chosen.to_string(),
        used_by: Vec::new(),
    };
    match daemon.objects.create_network(&network).await {
        // Somebody else has made it in between.
        Err(error) if error.code == Code::Conflict => {}
        other => other?,
    }
    daemon.events.tell("network", &name, &name, "created", None);
    Ok(Json(network))
}

fn existing(daemon: &App, network: NamedNetwork, subnet: Option<&str>) -> Answer<NamedNetwork> {
    if subnet.is_some_and(|subnet| subnet != network.subnet) {
        let NamedNetwork { name, subnet, .. } = &network;
        return Err(Refused(
            ApiError::new(Code::Conflict, format!("network {name} has {subnet} already"))
                .hint(format!("choose another name, or remove it: guise network rm {name}")),
        ));
    }
    Ok(Json(complete(daemon, network)))
}

#[utoipa::path(
    delete, path = "/v1/networks/{name}", params(("name" = String, Path)),
    responses((status = 200), (status = 404, body = ApiError), (status = 409, body = ApiError))
)]
pub async fn remove(State(daemon): State<App>, Path(name): Path<String>) -> Answer<()> {
    let network = daemon.objects.network(&name)?.ok_or_else(|| {
        ApiError::new(Code::NotFound, format!("there is no network {name}"))
            .hint("guise network ls lists them")
    })?;
    if let Some(user) = complete(&daemon, network).used_by.first() {
        return Err(Refused(
            ApiError::new(Code::State, format!("network {name} is used by instance {user}"))
                .hint(format!("remove the instance first: guise rm {user}")),
        ));
    }
    daemon.networks.end(&daemon, &name).await;
    daemon.objects.remove_network(&name).await?;
    networks::end_book(&daemon.config.networks(), &name)?;
    networks::remove_folder(&daemon.config.switch(&name));
    daemon.events.tell("network", &name, &name, "removed", None);
    Ok(Json(()))
}
