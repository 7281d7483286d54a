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

/// Images of Docker before 1.10, saved: no `manifest.json`, and layers that need not be tars.
pub struct LegacyImages {
    /// The archive.
    pub tar: Vec<u8>,
    /// Image ids, the tagged leaf first, its ancestors behind it.
    pub ids: Vec<String>,
}

/// Four images in a chain, of one repository with the tag `latest`. Their layers are texts; the base has no `Size`,
/// as those of Docker before 1.0.
pub fn legacy_archive(repository: &str) -> Result<LegacyImages> {
    let ids: Vec<String> = (0..4)
        .map(|n| Digest::sha256(format!("{repository} {n}")).hex().to_owned())
        .collect();
    let mut archive = tar::Builder::new(Vec::new());
    for (n, id) in ids.iter().enumerate() {
        let mut image = json!({
            "id": id, "created": "2014-04-08T19:31:00Z", "architecture": "amd64", "os": "linux",
            "container_config": {"Cmd": ["/bin/sh", "-c", format!("#(nop) step {n}")]},
        });
        if let Some(parent) = ids.get(n + 1) {
            image["parent"] = json!(parent);
            image["Size"] = json!(n * 1000);
        }
        append(&mut archive, &format!("{id}/VERSION"), b"1.0")?;
        append(&mut archive, &format!("{id}/json"), image.to_string().as_bytes())?;
        append(
            &mut archive,
            &format!("{id}/layer.tar"),
            format!("layer {n}, no tar").as_bytes(),
        )?;
    }
    let repositories = json!({repository: {"latest": ids.first()}});
    append(&mut archive, "repositories", repositories.to_string().as_bytes())?;
    Ok(LegacyImages {
        tar: archive.into_inner()?,
        ids,
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
