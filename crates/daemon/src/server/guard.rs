//! Before each request: who asks, whether they may, and a line in the audit trail.
//!
//! [`RULES`] has every request that there is, with what it needs. What is not in it is not
//! served, so that nothing can be added without somebody thinking about who may use it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use guise_api::{ALL_PROJECTS, ApiError, AuditRecord, Code, DEFAULT_PROJECT, PROJECT_HEADER, Role};
use guise_container::state::timestamp;

use super::App;
use super::answer::Refused;
use crate::access::Identity;

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    /// The daemon's own socket.
    Owner,
    Remote(SocketAddr),
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// To be known.
    Known,
    /// A role in the project that it names.
    In(Role),
    /// To be able to look at that project, or at some where it names all.
    Seeing,
    /// A role in all projects.
    Everywhere(Role),
}

struct Rule {
    method: Method,
    path: &'static str,
    need: Need,
    /// It goes into the audit trail also when it was allowed.
    told: bool,
}

const fn told(method: Method, path: &'static str, need: Need) -> Rule {
    Rule { method, path, need, told: true }
}

const fn look(path: &'static str, need: Need) -> Rule {
    Rule { method: Method::GET, path, need, told: false }
}

/// What to do about a role that does not suffice.
const TOKENS: &str = "whoever owns the daemon makes tokens for it: guise token create";

const VIEW: Need = Need::In(Role::Viewer);
const USE: Need = Need::In(Role::Operator);
const RULE: Need = Need::Everywhere(Role::Admin);

const RULES: &[Rule] = &[
    look("/v1/openapi.json", Need::Known),
    look("/v1/system", Need::Everywhere(Role::Viewer)),
    look("/v1/metrics", Need::Everywhere(Role::Viewer)),
    look("/v1/events", Need::Seeing),
    look("/v1/changes", Need::Seeing),
    look("/v1/audit", RULE),
    look("/v1/images", Need::Known),
    told(Method::DELETE, "/v1/images/{name}", Need::Everywhere(Role::Operator)),
    told(Method::POST, "/v1/images/pull", USE),
    told(Method::POST, "/v1/images/push", Need::Everywhere(Role::Operator)),
    // It reads folders of the host, and gives images names that all projects see.
    told(Method::POST, "/v1/images/build", RULE),
    look("/v1/tasks", Need::Seeing),
    look("/v1/tasks/{id}", VIEW),
    look("/v1/tasks/{id}/follow", VIEW),
    look("/v1/tasks/{id}/log", VIEW),
    told(Method::POST, "/v1/tasks/{id}/cancel", USE),
    Rule { method: Method::POST, path: "/v1/explain", need: VIEW, told: false },
    look("/v1/instances", Need::Seeing),
    told(Method::POST, "/v1/instances", USE),
    look("/v1/instances/{name}", VIEW),
    told(Method::DELETE, "/v1/instances/{name}", USE),
    told(Method::POST, "/v1/instances/{name}/start", USE),
    told(Method::POST, "/v1/instances/{name}/stop", USE),
    told(Method::POST, "/v1/instances/{name}/restart", USE),
    told(Method::POST, "/v1/instances/{name}/kill", USE),
    told(Method::POST, "/v1/instances/{name}/pause", USE),
    told(Method::POST, "/v1/instances/{name}/resume", USE),
    told(Method::POST, "/v1/instances/{name}/rename", USE),
    Rule { method: Method::POST, path: "/v1/instances/{name}/wait", need: VIEW, told: false },
    look("/v1/instances/{name}/stats", VIEW),
    told(Method::GET, "/v1/instances/{name}/attach", USE),
    told(Method::GET, "/v1/instances/{name}/exec", USE),
    look("/v1/instances/{name}/logs", VIEW),
    told(Method::GET, "/v1/instances/{name}/copy-out", USE),
    told(Method::GET, "/v1/instances/{name}/copy-in", USE),
    look("/v1/networks", Need::Seeing),
    told(Method::POST, "/v1/networks", USE),
    told(Method::DELETE, "/v1/networks/{name}", USE),
    look("/v1/volumes", Need::Seeing),
    told(Method::POST, "/v1/volumes", USE),
    told(Method::DELETE, "/v1/volumes/{name}", USE),
    look("/v1/projects", Need::Known),
    told(Method::POST, "/v1/projects", RULE),
    told(Method::PUT, "/v1/projects/{name}", RULE),
    told(Method::DELETE, "/v1/projects/{name}", RULE),
    look("/v1/tokens", RULE),
    told(Method::POST, "/v1/tokens", RULE),
    told(Method::DELETE, "/v1/tokens/{name}", RULE),
];

/// Who asks, and in which project; handlers are given this.
#[derive(Clone, Debug)]
pub struct Caller {
    pub identity: Identity,
    /// The project that the request names; [`ALL_PROJECTS`] only where lists are asked for.
    pub project: String,
}

impl Caller {
    /// Whether what belongs to a project is among what was asked for, and may be seen.
    pub fn sees(&self, project: &str) -> bool {
        let role = self.identity.role_in(project);
        let meant = [project, ALL_PROJECTS].contains(&self.project.as_str());
        role.is_some() && (meant || project == ALL_PROJECTS)
    }

    /// Refuses what reaches the host, unless the caller may do that in this project.
    pub fn check_host(&self, what: &str) -> Result<(), ApiError> {
        if self.identity.role_in(&self.project) >= Some(Role::Admin) {
            return Ok(());
        }
        Err(ApiError::new(
            Code::Forbidden,
            format!("{what} is for admins of project {}", self.project),
        )
        .hint(TOKENS))
    }
}

/// The rule of a request. A path that there is, but not with this method, is none.
fn rule_of(method: &Method, path: &str) -> Result<&'static Rule, ApiError> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut methods = Vec::new();
    for rule in RULES.iter().filter(|rule| rule.path == path) {
        if rule.method == method {
            return Ok(rule);
        }
        methods.push(rule.method.as_str());
    }
    Err(ApiError::new(Code::Method, format!("{path} has no {method}"))
        .hint(format!("it has {}", methods.join(", "))))
}

fn identify(daemon: &App, peer: Peer, request: &Request) -> Result<Identity, ApiError> {
    let Peer::Remote(_) = peer else { return Ok(Identity::owner()) };
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = shown
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let Some((_, token)) = token else {
        return Err(ApiError::new(Code::Unauthorized, "there was no token with the request")
            .hint("send one: Authorization: Bearer TOKEN"));
    };
    Identity::of_token(&daemon.objects, token.trim())
}

fn project_of(request: &Request) -> Result<String, ApiError> {
    let Some(value) = request.headers().get(PROJECT_HEADER) else {
        return Ok(DEFAULT_PROJECT.to_owned());
    };
    let name = value.to_str().map_err(|_| ApiError::invalid("the project is no name"))?;
    if name != ALL_PROJECTS {
        super::check_name(name)?;
    }
    Ok(name.to_owned())
}

/// Whether this identity may do this.
fn allow(
    daemon: &App,
    identity: Identity,
    project: String,
    need: Need,
) -> Result<Caller, ApiError> {
    let lacks = |role: Role, place: &str| {
        let who = &identity.who;
        Err(ApiError::new(Code::Forbidden, format!("{who} is no {} in {place}", role.name()))
            .hint(TOKENS))
    };
    match need {
        Need::Known => {}
        Need::In(_) if project == ALL_PROJECTS => {
            return Err(ApiError::invalid("this is about one project, and all were named"));
        }
        Need::Seeing if project == ALL_PROJECTS => {}
        Need::In(role) if identity.role_in(&project) < Some(role) => {
            return lacks(role, &format!("project {project}"));
        }
        Need::Seeing if identity.role_in(&project).is_none() => {
            return lacks(Role::Viewer, &format!("project {project}"));
        }
        // Who may see it is told that there is none.
        Need::In(_) | Need::Seeing => drop(daemon.objects.project(&project)?),
        Need::Everywhere(role) if identity.role_in(ALL_PROJECTS) < Some(role) => {
            return lacks(role, "all projects");
        }
        Need::Everywhere(_) => {}
    }
    Ok(Caller { identity, project })
}

/// The line of a request in the audit trail. One whose client leaves before there is an
/// answer is written too.
struct Trail {
    daemon: App,
    record: AuditRecord,
    wanted: bool,
}

impl Drop for Trail {
    fn drop(&mut self) {
        let refused = matches!(self.record.status, 401 | 403);
        if self.wanted || refused {
            self.daemon.audit.write(self.record.clone());
        }
    }
}

/// The object that a path names: the part that the API's path has in braces.
fn object_of(template: &str, path: &str) -> String {
    let parts = template.split('/').zip(path.split('/'));
    parts.filter(|(part, _)| part.starts_with('{')).map(|(_, name)| name).collect()
}

/// The object that a request made, for the audit trail.
#[derive(Clone)]
pub struct Made(pub Arc<str>);

pub async fn guard(State(daemon): State<App>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let peer = request.extensions().get::<Peer>().copied();
    let Some(peer) = peer else {
        return Refused(ApiError::internal("a request came from nowhere")).into_response();
    };
    let template = path.as_deref().unwrap_or(request.uri().path());
    let mut trail = Trail {
        record: AuditRecord {
            time: timestamp(),
            who: String::new(),
            from: match peer {
                Peer::Owner => None,
                Peer::Remote(address) => Some(address.to_string()),
            },
            what: format!("{} {template}", request.method()),
            project: String::new(),
            object: object_of(template, request.uri().path()),
            status: 0,
            unwritten: 0,
        },
        wanted: false,
        daemon: daemon.clone(),
    };
    let allowed = (|| {
        let identity = identify(&daemon, peer, &request)?;
        trail.record.who.clone_from(&identity.who);
        // What is not there is told to whoever is known.
        let Some(path) = &path else { return Ok(None) };
        let rule = rule_of(request.method(), path)?;
        trail.wanted = rule.told;
        let project = project_of(&request)?;
        trail.record.project.clone_from(&project);
        allow(&daemon, identity, project, rule.need).map(Some)
    })();
    let response = match allowed {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(error) => Refused(error).into_response(),
    };
    if let Some(Made(name)) = response.extensions().get() {
        trail.record.object = name.to_string();
    }
    trail.record.status = response.status().as_u16();
    response
}

#[cfg(test)]
mod tests;
