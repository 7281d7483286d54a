//! A small image of three layers, saved as Docker 1.10 to 24 do.

use std::{fs::File, io, path::Path};

use pulp_model::Digest;
use serde_json::json;

/// Files of the layers, base first.
const LAYERS: [&[(&str, &str)]; 3] = [
    &[
        ("etc/os-release", "NAME=Hello\nID=hello\n"),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ],
    &[(
        "usr/share/hello/greeting",
        "Hello from an image that pulp imported, published and served.\n",
    )],
    &[("usr/share/hello/version", "1.0\n")],
];

/// Writes the archive.
pub(super) fn write(path: &Path) -> io::Result<()> {
    let layers = LAYERS
        .iter()
        .map(|files| layer(files))
        .collect::<io::Result<Vec<_>>>()?;
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::sha256(l).to_string()).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/cat", "/usr/share/hello/greeting"], "Labels": {"org.opencontainers.image.title": "hello"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": LAYERS.iter().map(|f| json!({
            "created": "2026-01-01T00:00:00Z", "created_by": format!("COPY {} /", f.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(" ")),
        })).collect::<Vec<_>>(),
    })
    .to_string();
    let config_name = format!("{}.json", Digest::sha256(&config).hex());
    let names: Vec<String> = diff_ids
        .iter()
        .map(|d| format!("{}/layer.tar", d.trim_start_matches("sha256:")))
        .collect();
    let manifest =
        json!([{"Config": config_name, "RepoTags": ["hello:latest", "hello:1.0"], "Layers": names}])
            .to_string();

    let mut archive = tar::Builder::new(File::create(path)?);
    append(&mut archive, &config_name, config.as_bytes())?;
    for (name, bytes) in names.iter().zip(&layers) {
        append(&mut archive, name, bytes)?;
    }
    append(&mut archive, "manifest.json", manifest.as_bytes())?;
    archive.into_inner()?.sync_all()
}

fn layer(files: &[(&str, &str)]) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (name, text) in files {
        append(&mut layer, name, text.as_bytes())?;
    }
    layer.into_inner()
}

fn append<W: io::Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes)
}
