//! What others have, of which copies are made, and what begins by itself.

use std::{net::SocketAddr, path::PathBuf, sync::Mutex};

use anyhow::{Context as _, Result, ensure};
use pulp_testkit::{Registry, skopeo};
use pulp_tests::images::SavedImage;
use serde_json::{Value, json};

use crate::load::{Body, Client, WEB};

/// A registry of others, and the repositories that are copies of it.
pub(crate) struct Upstream {
    registry: Registry,
    pub(crate) mirrors: Vec<String>,
    /// Saved images, and how many tags there are already.
    archives: Vec<PathBuf>,
    tags: Mutex<usize>,
}

impl Upstream {
    const NAME: &str = "team/app";
    /// More would make each sync longer and longer.
    const MOST_TAGS: usize = 12;

    pub(crate) fn start(images: &[SavedImage], folder: &std::path::Path) -> Result<Self> {
        let archives = (0..images.len()).map(|n| folder.join(format!("upstream-{n}.tar")));
        let upstream = Self {
            registry: Registry::start()?,
            mirrors: vec!["mirror-0".to_owned(), "mirror-1".to_owned()],
            archives: archives.collect(),
            tags: Mutex::new(0),
        };
        for (image, path) in images.iter().zip(&upstream.archives) {
            std::fs::write(path, &image.tar)?;
        }
        upstream.grow()?;
        Ok(upstream)
    }

    /// One tag more, up to a bound.
    pub(crate) fn grow(&self) -> Result<()> {
        let mut tags = self.tags.lock().unwrap();
        if *tags < Self::MOST_TAGS {
            let archive = &self.archives[*tags % self.archives.len()];
            let target = format!("docker://{}/{}:u{}", self.registry.host(), Self::NAME, *tags);
            let source = format!("docker-archive:{}", archive.display());
            skopeo(&["copy", "-q", "--dest-tls-verify=false", &source, &target])?;
            *tags += 1;
        }
        Ok(())
    }

    /// What a mirror's importer is told.
    pub(crate) fn importer(&self) -> Value {
        json!({"feed": self.registry.url(), "upstream_name": Self::NAME})
    }
}

/// What begins by itself while the run goes on: publishes of two repositories and syncs of one.
pub(crate) struct Schedules(Vec<String>);

impl Schedules {
    pub(crate) fn begin(client: &Client, api: SocketAddr, upstream: &Upstream) -> Result<Self> {
        let publishes = |repo: &str| format!("/repositories/{repo}/distributors/{WEB}/schedules/publish/");
        let syncs = format!(
            "/repositories/{}/importers/docker_importer/schedules/sync/",
            upstream.mirrors[0]
        );
        let mut all = Vec::new();
        for (path, every) in [
            (publishes("lasting-0"), "PT3S"),
            (publishes("lasting-1"), "PT7S"),
            (syncs, "PT11S"),
        ] {
            let (status, made) = client.call(api, "POST", &path, Body::Json(json!({"schedule": every})))?;
            ensure!(status == 201, "{status} {made}");
            all.push(format!("{path}{}/", made["_id"].as_str().context("no id")?));
        }
        Ok(Self(all))
    }

    /// Nothing begins by itself any more; every schedule stays to be looked at.
    pub(crate) fn end(&self, client: &Client, api: SocketAddr) -> Result<()> {
        for path in &self.0 {
            pulp_tests::wait_for("the end of a schedule", || {
                let off = Body::Json(json!({"enabled": false}));
                Ok(matches!(client.call(api, "PUT", path, off), Ok((200, _))).then_some(()))
            })?;
        }
        Ok(())
    }
}
