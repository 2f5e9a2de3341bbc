//! Who asks, and what they may do.
//!
//! Whoever opens the daemon's own socket is its owner, and may do everything. Others show a
//! token: `guise_NAME_SECRET`, the secret being 256 random bits. The store has only its hash,
//! which tells nothing of a secret that cannot be guessed; and comparing takes the same time
//! wherever two hashes differ, and whether or not there is a token of that name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guise_api::{ALL_PROJECTS, ApiError, Code, Grants, Role, Token};
use guise_container::state::format_time;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::objects::Objects;
use crate::random;

/// What every token begins with, so that people and scanners know one when they see it.
const MARK: &str = "guise_";
/// Hexadecimal digits of a secret.
const DIGITS: usize = 64;
/// Who uses the daemon's own socket.
pub const OWNER: &str = "owner";

/// A token as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenRecord {
    pub name: String,
    pub grants: Grants,
    pub created: String,
    /// Seconds since 1970.
    pub expires: Option<u64>,
    /// SHA-256 of the secret, as hexadecimal digits.
    hash: String,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn hash(secret: &str) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl TokenRecord {
    /// A new token, and what is given to whoever is to have it.
    pub fn make(
        name: &str,
        grants: Grants,
        life: Option<Duration>,
    ) -> Result<(TokenRecord, String), ApiError> {
        let secret = random::digits(DIGITS)?;
        let record = TokenRecord {
            name: name.to_owned(),
            grants,
            created: format_time(now(), 0),
            expires: life.map(|life| now().saturating_add(life.as_secs())),
            hash: hash(&secret),
        };
        Ok((record, format!("{MARK}{name}_{secret}")))
    }

    fn has_expired(&self) -> bool {
        self.expires.is_some_and(|end| end <= now())
    }

    /// What may be told of it.
    pub fn shown(&self) -> Token {
        Token {
            name: self.name.clone(),
            grants: self.grants.clone(),
            created: self.created.clone(),
            expires: self.expires.map(|end| format_time(end, 0)),
            expired: self.has_expired(),
        }
    }
}

/// Somebody who is known.
#[derive(Clone, Debug)]
pub struct Identity {
    pub who: String,
    grants: Grants,
}

impl Identity {
    pub fn with(who: impl Into<String>, grants: Grants) -> Identity {
        Identity { who: who.into(), grants }
    }

    pub fn owner() -> Identity {
        Identity::with(OWNER, Grants::from([(ALL_PROJECTS.to_owned(), Role::Admin)]))
    }

    /// Who has this token.
    pub fn of_token(objects: &Objects, token: &str) -> Result<Identity, ApiError> {
        let unknown = || {
            ApiError::new(Code::Unauthorized, "the token is none of this daemon's")
                .hint("guise token create makes one, for whoever owns the daemon")
        };
        let (name, secret) =
            token.strip_prefix(MARK).and_then(|rest| rest.rsplit_once('_')).ok_or_else(unknown)?;
        if crate::server::check_name(name).is_err() {
            return Err(unknown());
        }
        let record = objects.token(name)?;
        let kept = record.as_ref().map_or_else(|| hash(""), |record| record.hash.clone());
        let same = bool::from(hash(secret).as_bytes().ct_eq(kept.as_bytes()));
        let record = record.filter(|_| same).ok_or_else(unknown)?;
        if record.has_expired() {
            return Err(ApiError::new(Code::Unauthorized, format!("token {name} has expired"))
                .hint("guise token create makes another, for whoever owns the daemon"));
        }
        Ok(Identity::with(record.name, record.grants))
    }

    /// What it is in a project; in [`ALL_PROJECTS`], what it is everywhere.
    pub fn role_in(&self, project: &str) -> Option<Role> {
        let everywhere = self.grants.get(ALL_PROJECTS).copied();
        everywhere.max(self.grants.get(project).copied())
    }
}

#[cfg(test)]
mod tests;
