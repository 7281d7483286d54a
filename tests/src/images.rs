//! Image archives that tests make themselves, byte for byte the same each time.

use std::io::Write;

use anyhow::Result;
use pulp_model::Digest;
use serde_json::json;

/// A saved image: its archive, and what must come out of it.
pub struct SavedImage {
    /// The archive.
    pub tar: Vec<u8>,
    /// Digests of the uncompressed layers, base first.
    pub diff_ids: Vec<Digest>,
}

/// `docker save` of Docker 1.10 to 24: `manifest.json`, a config, and `layers` layers of `layer_bytes` bytes that
/// don't compress.
pub fn docker_archive(repo_tag: &str, layers: usize, layer_bytes: usize) -> Result<SavedImage> {
    let layers: Vec<Vec<u8>> = (0..layers)
        .map(|n| layer(n, layer_bytes))
        .collect::<Result<_>>()?;
    let diff_ids: Vec<Digest> = layers.iter().map(Digest::sha256).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/true"], "Labels": {"of": repo_tag}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": diff_ids.iter().map(|d| json!({"created": "2026-01-01T00:00:00Z", "created_by": format!("ADD {d}")})).collect::<Vec<_>>(),
    })
    .to_string();
    let config_name = format!("{}.json", Digest::sha256(&config).hex());
    let names: Vec<String> = diff_ids
        .iter()
        .map(|d| format!("{}/layer.tar", d.hex()))
        .collect();
    let manifest = json!([{"Config": config_name, "RepoTags": [repo_tag], "Layers": names}]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, &config_name, config.as_bytes())?;
    for (name, bytes) in names.iter().zip(&layers) {
        append(&mut archive, name, bytes)?;
    }
    append(&mut archive, "manifest.json", manifest.as_bytes())?;
    Ok(SavedImage {
        tar: archive.into_inner()?,
        diff_ids,
    })
}

/// A layer with one file of `bytes` pseudo-random bytes.
fn layer(seed: usize, bytes: usize) -> Result<Vec<u8>> {
    let mut state = seed as u64 + 0x9e37_79b9_7f4a_7c15;
    let content: Vec<u8> = (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect();
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, &format!("data/{seed}"), &content)?;
    Ok(layer.into_inner()?)
}

/// Adds a regular file to a tar.
pub fn append<W: Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes)?;
    Ok(())
}
