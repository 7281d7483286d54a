//! Tokens of the registry, as `docker login` and pulls by clients with credentials need them.
//!
//! The API signs them, Crane checks them; they share this definition and a pair of keys, and nothing else, so that
//! Crane needs no database to know who may pull. A token is a JWT with the claims of the distribution project's
//! "Token Authentication Specification", signed by ES256; registries made by others can check it as well.

mod keys;
mod scope;
mod verify;

pub use keys::{KeyError, KeyId, SignError, Signed, Signer};
pub use scope::pulls_asked_for;
pub use verify::{Pulls, Refusal, Verifier};

use pulp_model::RegistryId;
use serde::{Deserialize, Serialize};

/// Where the API answers to who asks for tokens, and Crane to who asks for one of nobody.
pub const PATH: &str = "/token";

/// What stands for a token of nobody, where it is given out without a key: it opens nothing, and needs no proof.
pub const ANONYMOUS: &str = "anonymous";

/// How far the clocks of the API and of Crane may be apart, in seconds.
pub const LEEWAY_SECONDS: u64 = 60;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// Who gave it out.
    iss: String,
    /// Who may use it; empty for nobody in particular.
    sub: String,
    /// The registry that it is for.
    aud: String,
    /// When it ends, seconds since 1970.
    exp: u64,
    /// When it begins.
    nbf: u64,
    /// When it was given out.
    iat: u64,
    /// A name of its own.
    jti: String,
    /// What it opens.
    access: Vec<Access>,
}

/// What may be done with one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Access {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
}

impl Access {
    fn pull(name: &RegistryId) -> Self {
        Self {
            kind: "repository".to_owned(),
            name: name.to_string(),
            actions: vec!["pull".to_owned()],
        }
    }

    /// The repository that it lets pull from.
    fn pulls(self) -> Option<RegistryId> {
        let lets_pull = self.kind == "repository" && self.actions.iter().any(|a| a == "pull");
        lets_pull.then(|| self.name.parse().ok())?
    }
}
