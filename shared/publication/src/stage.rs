//! Building a publication aside, and the switch that makes it the published one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pulp_model::RepositoryId;

use crate::{
    INDEX_FILE, Index, Publication, PublicationError, PublicationId, fs as disk,
    index::manifest_folder,
    redirect,
    root::{Api, Root},
};

type Result<T> = std::result::Result<T, PublicationError>;

/// A publication built aside under attempt-private names, durable, not yet visible. Dropped without
/// [`Staged::switch`], it removes what it built.
#[derive(Debug)]
pub struct Staged {
    root: Root,
    repository: RepositoryId,
    id: PublicationId,
    attempt: String,
    v1: PathBuf,
    v2: PathBuf,
}

impl Root {
    /// Builds both trees of a publication aside. `attempt` keeps the names of this try apart from those of
    /// another one that may still run; use the task's id and attempt number.
    pub fn stage(&self, publication: &Publication, id: &PublicationId, attempt: &str) -> Result<Staged> {
        disk::create_dir_all(self.path())?;
        let path = self
            .path()
            .canonicalize()
            .map_err(PublicationError::io("find", self.path()))?;
        let root = Root::new(path);
        let attempt = attempt_name(attempt);
        let repository = publication.repository().clone();
        let private = |api| {
            let name = format!(".{id}.{attempt}.tmp");
            root.master(api, &repository).join(name)
        };
        // The value exists before its directories do, so that a failure halfway removes what was built.
        let staged = Staged {
            v1: private(Api::V1),
            v2: private(Api::V2),
            repository: repository.clone(),
            id: *id,
            root: root.clone(),
            attempt,
        };
        for api in Api::ALL {
            disk::create_dir_all(&root.master(api, &repository))?;
        }
        build_v1(&staged.v1, publication)?;
        build_v2(&staged.v2, publication, id)?;
        Ok(staged)
    }
}

impl Staged {
    /// Makes this the repository's publication: v2 before v1, and in each the files before the redirect file, so
    /// that a redirect file never names files that are not there. Call it within the fence.
    pub fn switch(self) -> Result<()> {
        // Prepare first what may fail for want of space; then only renames are left.
        for api in Api::ALL {
            disk::create_dir_all(&self.root.web_dir(api))?;
            disk::create_dir_all(&self.root.app_dir(api))?;
        }
        for (api, built) in [(Api::V2, &self.v2), (Api::V1, &self.v1)] {
            let name = self.place(api, built)?;
            self.point(api, &name)?;
        }
        tracing::info!(repository = %self.repository, publication = %self.id, "published");
        Ok(())
    }

    /// Renames a built tree to its final name and returns that. A tree of this name is there if an earlier attempt
    /// at the same publication got this far; it may be the published one, so it is left alone.
    fn place(&self, api: Api, built: &Path) -> Result<String> {
        let master = self.root.master(api, &self.repository);
        let plain = self.id.to_string();
        let name = if master.join(&plain).exists() {
            format!("{plain}.{}", self.attempt)
        } else {
            plain
        };
        let place = master.join(&name);
        fs::rename(built, &place).map_err(PublicationError::io("rename to", place))?;
        disk::sync_dir(&master)?;
        Ok(name)
    }

    fn point(&self, api: Api, name: &str) -> Result<()> {
        let (repo, attempt) = (&self.repository, &self.attempt);
        let target = Path::new("..").join("master").join(repo.as_str()).join(name);
        let web_target = match api {
            Api::V1 => target.join("web"),
            Api::V2 => target.clone(),
        };
        let app_target = target.join(format!("{repo}.json"));
        let (web, app) = (self.root.web_dir(api), self.root.app_dir(api));
        let temporary = temporary_link(repo, attempt);
        disk::switch_link(&web_target, &web.join(repo.as_str()), &web.join(&temporary))?;
        disk::sync_dir(&web)?;
        disk::switch_link(
            &app_target,
            &app.join(format!("{repo}.json")),
            &app.join(&temporary),
        )?;
        disk::sync_dir(&app)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for built in [&self.v1, &self.v2] {
            // After the switch there is nothing under these names. What can't be removed now, pruning removes.
            if let Err(error) = disk::remove_tree(built) {
                tracing::warn!(%error, "a publication that was given up stays behind");
            }
        }
    }
}

/// Name of a link that is about to be renamed over the real one. No repository id has a `+`.
pub(crate) fn temporary_link(repo: &RepositoryId, attempt: &str) -> String {
    format!(".tmp+{attempt}+{repo}")
}

/// An attempt as part of a file name, where a dot separates.
pub(crate) fn attempt_name(attempt: &str) -> String {
    attempt
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// A directory under construction: links content into itself, and syncs itself last.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn create(path: PathBuf) -> Result<Self> {
        disk::create_dir(&path)?;
        Ok(Self { path })
    }

    fn link(&self, name: impl AsRef<Path>, content: &Path) -> Result<()> {
        let content = content
            .canonicalize()
            .map_err(PublicationError::io("find", content))?;
        disk::link(&disk::link_target(&self.path, &content), &self.path.join(name))
    }

    fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        disk::write_new(&self.path.join(name), bytes)
    }

    fn finish(self) -> Result<()> {
        disk::sync_dir(&self.path)
    }
}

fn build_v1(tree: &Path, publication: &Publication) -> Result<()> {
    let contents = publication.contents();
    disk::remove_tree(tree)?;
    let top = Folder::create(tree.to_owned())?;
    // Made even for an empty repository, or the link to it would dangle.
    let web = Folder::create(tree.join("web"))?;
    for image in &contents.images {
        let folder = Folder::create(web.path.join(image.image_id.as_str()))?;
        folder.link("ancestry", &image.ancestry)?;
        folder.link("json", &image.json)?;
        folder.link("layer", &image.layer)?;
        folder.finish()?;
    }
    web.finish()?;
    top.write(
        format!("{}.json", contents.repository),
        &json(tree, redirect::v1_file(publication))?,
    )?;
    top.finish()
}

fn build_v2(tree: &Path, publication: &Publication, id: &PublicationId) -> Result<()> {
    let contents = publication.contents();
    disk::remove_tree(tree)?;
    let top = Folder::create(tree.to_owned())?;

    let blobs = Folder::create(tree.join("blobs"))?;
    for blob in &contents.blobs {
        blobs.link(blob.digest.to_string(), &blob.path)?;
    }
    blobs.finish()?;

    let manifests = Folder::create(tree.join("manifests"))?;
    for folder in ["1", "2", "list"] {
        let folder_path = Folder::create(manifests.path.join(folder))?;
        for (name, path) in references(publication, folder) {
            folder_path.link(name, path)?;
        }
        folder_path.finish()?;
    }
    manifests.finish()?;

    let tags = Folder::create(tree.join("tags"))?;
    tags.write("list", &json(tree, redirect::tags_list(publication))?)?;
    tags.finish()?;

    top.write(
        INDEX_FILE,
        &json(tree, serde_json::to_vec(&Index::of(publication, id)))?,
    )?;
    top.write(
        format!("{}.json", contents.repository),
        &json(tree, redirect::v4_file(publication))?,
    )?;
    top.finish()
}

/// Names in one folder below `manifests/`, digests and tags, with the file each stands for; sorted.
pub(crate) fn references<'a>(publication: &'a Publication, folder: &'static str) -> Vec<(String, &'a Path)> {
    let contents = publication.contents();
    let images = contents.manifests.iter().map(|m| {
        let folder = manifest_folder(pulp_model::unit::ManifestKind::Image, m.unit.schema_version);
        (folder, &m.unit.digest, m.path.as_path())
    });
    let lists = contents
        .lists
        .iter()
        .map(|l| ("list", &l.unit.digest, l.path.as_path()));
    let here: std::collections::BTreeMap<_, _> = images
        .chain(lists)
        .filter(|(f, ..)| *f == folder)
        .map(|(_, digest, path)| (digest, path))
        .collect();
    let tags = contents
        .tags
        .iter()
        .filter(|t| manifest_folder(t.manifest_type, t.schema_version) == folder)
        .filter_map(|t| Some((t.name.to_string(), *here.get(&t.manifest_digest)?)));
    let mut names: Vec<_> = here
        .iter()
        .map(|(d, p)| (d.to_string(), *p))
        .chain(tags)
        .collect();
    names.sort();
    names
}

pub(crate) fn json(path: &Path, made: std::result::Result<Vec<u8>, serde_json::Error>) -> Result<Vec<u8>> {
    made.map_err(|e| PublicationError::io("write the JSON for", path)(e.into()))
}
