//! Tokens in the store: never what proves that somebody has one, only its hash.

use guise_api::{ApiError, Code};
use guise_state::{Check, Outcome};

use super::Objects;
use crate::DaemonError;
use crate::access::TokenRecord;

const TOKENS: &str = "tokens/";

fn key_of(name: &str) -> String {
    format!("{TOKENS}{name}")
}

impl Objects {
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, DaemonError> {
        self.all(TOKENS)
    }

    pub fn token(&self, name: &str) -> Result<Option<TokenRecord>, ApiError> {
        self.one(&key_of(name))
    }

    pub async fn create_token(&self, token: &TokenRecord) -> Result<(), ApiError> {
        let key = key_of(&token.name);
        match self.commit(vec![Check::Absent(key.clone())], vec![super::put(key, token)?]).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict { .. } => {
                let name = &token.name;
                Err(ApiError::new(Code::Conflict, format!("there is a token {name} already"))
                    .hint(format!("choose another name, or remove it: guise token rm {name}")))
            }
        }
    }

    pub async fn remove_token(&self, name: &str) -> Result<(), ApiError> {
        if self.token(name)?.is_none() {
            return Err(ApiError::new(Code::NotFound, format!("there is no token {name}"))
                .hint("guise token ls lists them"));
        }
        self.remove_key(key_of(name)).await.map(drop)
    }
}
