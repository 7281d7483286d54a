//! `[transfer]`: exports for closed networks.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Config;

/// `[transfer]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferConfig {
    /// Below it lie the exports that can be imported. Default `import` below the storage root.
    import_dir: Option<PathBuf>,
    /// The private key that signs exports: Ed25519 or ECDSA P-256, PKCS#8 in PEM. Default `export-key.pem` below the
    /// storage root; if there is no such file, exports are not signed.
    signing_key: Option<PathBuf>,
    /// A file whose first line is the password of a signing key that cosign encrypted; unset, an empty one is tried.
    pub signing_key_password_file: Option<PathBuf>,
    /// Public keys in PEM whose exports are taken, `*.pem` and `*.pub`. Default `trusted-keys` below the storage root.
    trusted_keys_dir: Option<PathBuf>,
    /// Whether an export must be signed by one of them.
    pub require_signature: bool,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            import_dir: None,
            signing_key: None,
            signing_key_password_file: None,
            trusted_keys_dir: None,
            require_signature: true,
        }
    }
}

impl Config {
    /// Where exports lie that can be imported.
    pub fn import_dir(&self) -> PathBuf {
        self.below_root(self.transfer.import_dir.as_deref(), "import")
    }

    /// The key that signs exports; there need be no such file.
    pub fn export_signing_key(&self) -> PathBuf {
        self.below_root(self.transfer.signing_key.as_deref(), "export-key.pem")
    }

    /// The keys whose exports are taken; there need be no such directory.
    pub fn trusted_keys_dir(&self) -> PathBuf {
        self.below_root(self.transfer.trusted_keys_dir.as_deref(), "trusted-keys")
    }

    fn below_root(&self, configured: Option<&Path>, default: &str) -> PathBuf {
        configured.map_or_else(|| self.storage.root.join(default), Path::to_owned)
    }
}
