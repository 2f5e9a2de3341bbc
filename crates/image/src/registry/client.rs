//! Requests to one repository of one registry: over HTTPS, or HTTP where that
//! is allowed; authenticated when the registry asks for it; repeated when the
//! network or the registry has a weak moment.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Method, Request, Response};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

use super::RegistryError;
use super::challenge::{self, Challenge};
use super::config::Endpoint;
use super::credentials::{self, Credentials};

/// How often a request is sent before its error counts.
pub const ATTEMPTS: u32 = 5;

/// The most a registry may say about an error, or in a token.
const SMALL: u64 = 256 << 10;

/// What the client will do; part of what a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Pull,
    Push,
    Delete,
}

pub struct Client {
    agent: Agent,
    endpoint: Endpoint,
    /// Scheme and host of the API.
    base: String,
    access: Access,
    credentials: Option<Credentials>,
    /// The Authorization header that worked last.
    authorization: Mutex<Option<String>>,
}

/// The body of a request that can be sent again.
pub enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// A stream of known length. It is sent once: the caller repeats.
    Stream(&'a mut dyn Read, u64),
}

impl Client {
    /// Connects: finds out whether the registry speaks HTTPS.
    pub fn connect(endpoint: &Endpoint, access: Access) -> Result<Self, RegistryError> {
        let credentials =
            credentials::find(&credentials::files(), &endpoint.host, &endpoint.repository)?;
        let api_host = match endpoint.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let mut client = Self {
            agent: agent(endpoint)?,
            endpoint: endpoint.clone(),
            base: format!("https://{api_host}"),
            access,
            credentials,
            authorization: Mutex::new(None),
        };
        if endpoint.insecure {
            let ping = client.agent.get(format!("{}/v2/", client.base)).call();
            if let Err(secure) = ping {
                client.base = format!("http://{api_host}");
                if client.agent.get(format!("{}/v2/", client.base)).call().is_err() {
                    return Err(client.unreachable(&secure));
                }
            }
        }
        Ok(client)
    }

    /// A URL of the repository's API.
    pub fn url(&self, path: &str) -> String {
        format!("{}/v2/{}/{path}", self.base, self.endpoint.repository)
    }

    /// What a Location header means.
    pub fn absolute(&self, location: &str, what: &str) -> Result<String, RegistryError> {
        if location.starts_with("https://") || location.starts_with("http://") {
            // Secrets and blobs must not go over a worse channel than asked for.
            if location.starts_with("http://") && self.base.starts_with("https://") {
                return Err(self.nonsense(what, "it leads from HTTPS to HTTP"));
            }
            return Ok(location.to_owned());
        }
        if location.starts_with('/') {
            return Ok(format!("{}{location}", self.base));
        }
        Err(self.nonsense(what, format!("its Location is {location:?}")))
    }

    /// Sends a request, again if it must be, until the registry has answered
    /// it. Answers that are errors come back as such, but for those in
    /// `expected`.
    pub fn request(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, &str)],
        mut payload: Payload<'_>,
        what: &str,
        expected: &[u16],
    ) -> Result<Response<Body>, RegistryError> {
        let once = matches!(payload, Payload::Stream(..));
        let mut attempt = 0;
        let mut url = url.to_owned();
        let mut redirects = 0;
        let mut authenticated = false;
        loop {
            attempt += 1;
            let sent = self.send(method, &url, headers, &mut payload);
            let response = match sent {
                Ok(response) => response,
                Err(_) if attempt < ATTEMPTS && !once => {
                    std::thread::sleep(back_off(attempt));
                    continue;
                }
                Err(e) => return Err(self.unreachable(&e)),
            };
            let status = response.status().as_u16();
            match status {
                _ if expected.contains(&status) => return Ok(response),
                301 | 302 | 303 | 307 | 308 if redirects < 5 => {
                    redirects += 1;
                    attempt = 0;
                    let location = header(&response, "location").unwrap_or("");
                    url = self.absolute(location, what)?;
                }
                401 if !authenticated && self.is_own(&url) => {
                    authenticated = true;
                    self.authenticate(&response, what)?;
                    if once {
                        // The stream is spent; its caller begins again.
                        return Err(self.unreachable(&"authentication had run out"));
                    }
                }
                429 | 500 | 502 | 503 | 504 if attempt < ATTEMPTS && !once => {
                    let asked = header(&response, "retry-after")
                        .and_then(|seconds| seconds.parse().ok())
                        .map(|seconds: u64| Duration::from_secs(seconds.min(30)));
                    std::thread::sleep(asked.unwrap_or_else(|| back_off(attempt)));
                }
                _ => return Err(self.error(response, what)),
            }
        }
    }

    fn is_own(&self, url: &str) -> bool {
        url.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'))
    }

    fn send(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, &str)],
        payload: &mut Payload<'_>,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut request = Request::builder().method(method.clone()).uri(url);
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        // Never to where a redirect leads: storage has tokens of its own.
        if self.is_own(url)
            && let Some(value) = &*self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
        {
            request = request.header("authorization", value);
        }
        match payload {
            Payload::None if *method == Method::POST || *method == Method::PUT => {
                self.agent.run(request.header("content-length", "0").body(&[][..])?)
            }
            Payload::None => self.agent.run(request.body(())?),
            Payload::Bytes(bytes) => self.agent.run(request.body(*bytes)?),
            Payload::Stream(stream, length) => {
                let request = request.header("content-length", *length);
                let mut stream: &mut dyn Read = *stream;
                self.agent.run(request.body(SendBody::from_reader(&mut stream))?)
            }
        }
    }

    /// Gets what the registry's challenge asks for.
    fn authenticate(&self, response: &Response<Body>, what: &str) -> Result<(), RegistryError> {
        let denied = |why: &str| RegistryError::Denied {
            host: self.endpoint.host.clone(),
            what: what.to_owned(),
            why: why.to_owned(),
        };
        let challenge = response
            .headers()
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| challenge::parse(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
            .ok_or_else(|| denied("it asks for no kind of authentication that Guise knows"))?;
        let value = match challenge {
            Challenge::Basic => {
                self.credentials.as_ref().and_then(Credentials::basic).ok_or_else(|| {
                    denied("it wants a user name and a password, and none is known")
                })?
            }
            Challenge::Bearer { realm, service, scope } => {
                let token = self.token(&realm, service.as_deref(), scope.as_deref(), what)?;
                format!("Bearer {token}")
            }
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        what: &str,
    ) -> Result<String, RegistryError> {
        let realm = self.absolute(realm, "the request for a token")?;
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
            Access::Delete => "pull,delete",
        };
        let own_scope = format!("repository:{}:{actions}", self.endpoint.repository);
        let scope = match self.access {
            Access::Pull => scope.unwrap_or(&own_scope),
            // A challenge names what one request needs; the next needs more.
            Access::Push | Access::Delete => &own_scope,
        };
        let mut fields = vec![("scope", scope)];
        fields.extend(service.map(|service| ("service", service)));
        let sent = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "guise"),
                    ("refresh_token", token),
                ]);
                self.agent.post(&realm).send_form(fields)
            }
            credentials => {
                let mut request = self.agent.get(&realm);
                for (key, value) in fields {
                    request = request.query(key, value);
                }
                if let Some(basic) = credentials.as_ref().and_then(Credentials::basic) {
                    request = request.header("authorization", basic);
                }
                request.call()
            }
        };
        let mut response = sent.map_err(|e| self.unreachable(&e))?;
        if response.status() != 200 {
            return Err(RegistryError::Denied {
                host: self.endpoint.host.clone(),
                what: what.to_owned(),
                why: format!("its token service answered {}", response.status()),
            });
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let bytes = read_bounded(&mut response, SMALL).map_err(|e| self.unreachable(&e))?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        token
            .and_then(|token| token.token.or(token.access_token))
            .filter(|token| token.bytes().all(|c| c.is_ascii_graphic()))
            .ok_or_else(|| self.nonsense("the request for a token", "there is no token in it"))
    }

    /// Turns an answer that is an error into one.
    fn error(&self, mut response: Response<Body>, what: &str) -> RegistryError {
        let status = response.status().as_u16();
        let host = self.endpoint.host.clone();
        let what = what.to_owned();
        if status == 404 {
            return RegistryError::NotFound { host, what };
        }
        let said = read_bounded(&mut response, SMALL)
            .ok()
            .and_then(|bytes| explanation(&bytes))
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        if status == 401 || status == 403 {
            let why = if said.is_empty() { "no reason given" } else { &said[2..] };
            return RegistryError::Denied { host, what, why: why.to_owned() };
        }
        RegistryError::Status { host, what, status, why: said }
    }

    pub fn unreachable(&self, why: &dyn std::fmt::Display) -> RegistryError {
        RegistryError::Unreachable { host: self.endpoint.host.clone(), why: why.to_string() }
    }

    pub fn nonsense(&self, what: &str, why: impl Into<String>) -> RegistryError {
        RegistryError::Protocol {
            host: self.endpoint.host.clone(),
            what: what.to_owned(),
            why: why.into(),
        }
    }
}

/// Half a second, doubling.
pub fn back_off(attempt: u32) -> Duration {
    Duration::from_millis(500 << attempt.saturating_sub(1).min(5))
}

pub fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Reads a body that must be small.
pub fn read_bounded(response: &mut Response<Body>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    response.body_mut().as_reader().take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::other(format!("its answer is longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// The messages of the specification's error document, without what could
/// confuse a terminal.
fn explanation(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Errors = serde_json::from_slice(bytes).ok()?;
    let texts: Vec<String> = document
        .errors
        .iter()
        .take(3)
        .map(|one| if one.message.is_empty() { one.code.clone() } else { one.message.clone() })
        .collect();
    let text: String = texts.join("; ").chars().filter(|c| !c.is_control()).take(300).collect();
    (!text.is_empty()).then_some(text)
}

/// An HTTP client with this registry's certificates.
fn agent(endpoint: &Endpoint) -> Result<Agent, RegistryError> {
    let mut roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    let mut client = None;
    for base in ["/etc/containers/certs.d", "/etc/docker/certs.d"] {
        let dir = std::path::Path::new(base).join(&endpoint.host);
        let Ok(files) = std::fs::read_dir(&dir) else { continue };
        let bad = |path: &std::path::Path, why: &dyn std::fmt::Display| RegistryError::Config {
            path: path.to_owned(),
            why: why.to_string(),
        };
        for path in files.flatten().map(|entry| entry.path()) {
            let read = || std::fs::read(&path).map_err(|e| bad(&path, &e));
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => {
                    roots.push(Certificate::from_pem(&read()?).map_err(|e| bad(&path, &e))?);
                }
                Some("cert") => {
                    let key_path = path.with_extension("key");
                    let key = std::fs::read(&key_path).map_err(|e| bad(&key_path, &e))?;
                    let key = PrivateKey::from_pem(&key).map_err(|e| bad(&key_path, &e))?;
                    let cert = Certificate::from_pem(&read()?).map_err(|e| bad(&path, &e))?;
                    client = Some(ClientCert::new_with_certs(&[cert], key));
                }
                _ => {}
            }
        }
    }
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .client_cert(client)
        .disable_verification(endpoint.insecure)
        .build();
    Ok(Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(tls)
        .user_agent(concat!("guise/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        // A stream may take hours, but not stand still.
        .timeout_per_read(Some(Duration::from_secs(60)))
        .build()
        .into())
}
