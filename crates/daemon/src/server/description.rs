//! The API's description, made of its types and of the handlers.

use guise_api::{ApiError, PROJECT_HEADER};
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, ObjectBuilder, PathItem, Ref, RefOr, Required, Response, ResponseBuilder,
    SecurityRequirement, Type,
};
use utoipa::{Modify, OpenApi};

use super::{
    images, instances, metrics, networks, projects, sessions, streams, system, tasks, tokens,
    volumes,
};

const BEARER: &str = "token";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Guise",
        description = "Instances, images, volumes, networks and projects of one host"
    ),
    modifiers(&Common),
    components(schemas(ApiError)),
    paths(
        system::info,
        system::description,
        metrics::metrics,
        streams::events,
        streams::changes,
        tokens::audit,
        images::list,
        images::remove,
        images::pull,
        images::push,
        images::build,
        tasks::list,
        tasks::inspect,
        streams::follow_task,
        streams::task_log,
        tasks::cancel,
        instances::explain,
        instances::list,
        instances::create,
        instances::inspect,
        instances::remove,
        instances::start,
        instances::stop,
        instances::restart,
        instances::kill,
        instances::pause,
        instances::resume,
        instances::rename,
        instances::wait,
        instances::stats,
        sessions::attach,
        sessions::exec,
        sessions::logs,
        sessions::copy_out,
        sessions::copy_in,
        networks::list,
        networks::create,
        networks::remove,
        volumes::list,
        volumes::create,
        volumes::remove,
        projects::list,
        projects::create,
        projects::change,
        projects::remove,
        tokens::list,
        tokens::create,
        tokens::remove,
    )
)]
struct Description;

/// What every request has in common: its project, its token, and how errors look.
struct Common;

impl Modify for Common {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme(BEARER, bearer);
        // On the daemon's own socket nothing has to be shown.
        let none = SecurityRequirement::default();
        let token = SecurityRequirement::new::<_, [&str; 0], &str>(BEARER, []);
        openapi.security = Some(vec![none, token]);
        for operation in openapi.paths.paths.values_mut().flat_map(operations) {
            complete(operation);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.delete].into_iter().flatten()
}

fn complete(operation: &mut Operation) {
    let project = ParameterBuilder::new()
        .name(PROJECT_HEADER)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("Which project is meant: `default` where it is not said."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    operation.parameters.get_or_insert_default().push(project);
    let responses = &mut operation.responses.responses;
    for (status, why) in [
        ("401", "nobody is known by the token"),
        ("403", "the token does not allow it"),
        ("default", "it was not done"),
    ] {
        responses.entry(status.to_owned()).or_insert_with(|| error(why));
    }
}

fn error(why: &str) -> RefOr<Response> {
    let shape = ContentBuilder::new().schema(Some(Ref::from_schema_name("ApiError"))).build();
    ResponseBuilder::new().description(why).content("application/json", shape).build().into()
}

/// The OpenAPI description as JSON.
#[must_use]
pub fn openapi() -> String {
    // It is made of text and numbers: there is nothing that JSON cannot say.
    Description::openapi().to_pretty_json().unwrap_or_default()
}
