//! Building a publication aside, and the switch that makes it the published one.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use pulp_model::RepositoryId;

use crate::{
    Changed, Publication, PublicationError, PublicationId, Published,
    catalog::{Catalog, NewFiles},
    fs::{self as disk, Unsynced},
    root::{Api, Root, attempt_name, private_tree, temporary_link},
    tree::{self, Origin},
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
    /// Builds both trees of a publication aside, anew. `attempt` keeps the names of this try apart from those of
    /// another one that may still run; use the task's id and attempt number.
    pub fn stage(&self, publication: &Publication, id: &PublicationId, attempt: &str) -> Result<Staged> {
        let staged = self.begin(publication.repository(), id, attempt)?;
        let catalog = Catalog::of(publication, id);
        let files = NewFiles::of(publication.contents().clone());
        tree::build(&staged.v1, &staged.v2, &catalog, &Origin::of_files(&files))?;
        Ok(staged)
    }

    /// Builds both trees of a changed publication aside. What is as before comes from the trees there are: a tree
    /// that nobody has read for `drained` takes up the change, or, if there is none, links are copied from the
    /// publication that is changed.
    pub fn stage_change(
        &self,
        changed: Changed,
        id: &PublicationId,
        attempt: &str,
        drained: Duration,
    ) -> Result<Staged> {
        let Changed {
            base,
            mut catalog,
            files,
        } = changed;
        catalog.index.publication = *id;
        let staged = self.begin(&catalog.index.repository, id, attempt)?;
        let taken = staged.take_drained(drained, &base);
        let origin = Origin {
            old: taken.as_ref().map(|taken| match taken {
                Taken::CopyOfBase => &base.catalog,
                Taken::Other(old) => &old.catalog,
            }),
            base: Some(&base),
            files: &files,
        };
        tree::build(&staged.v1, &staged.v2, &catalog, &origin)?;
        Ok(staged)
    }

    /// Makes a copy of the publication, so that the next change need not make it, unless there is a tree for the
    /// next change already. Copies are made of links, without any content, and only of publications of many.
    /// `stopped` is asked now and then. Returns whether a copy was made.
    pub fn prepare_spare(
        &self,
        repo: &RepositoryId,
        attempt: &str,
        drained: Duration,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<bool> {
        let Some(current) = self.published(repo)?.filter(|p| p.entries() >= WORTH_A_SPARE) else {
            return Ok(false);
        };
        if !self.drained(Api::V2, repo, drained)?.is_empty() || stopped() {
            return Ok(false);
        }
        let staged = self.begin(repo, current.id(), attempt)?;
        let nothing = NewFiles::default();
        let origin = Origin {
            old: None,
            base: Some(&current),
            files: &nothing,
        };
        tree::build(&staged.v1, &staged.v2, &current.catalog, &origin)?;
        if stopped() {
            return Ok(false);
        }
        // v1 first: a spare is found by its v2 tree.
        for (api, built) in [(Api::V1, &staged.v1), (Api::V2, &staged.v2)] {
            // Nobody has ever read it.
            disk::set_modified(built, SystemTime::UNIX_EPOCH + Duration::from_secs(1))?;
            let name = format!("{}.{SPARE}{}", current.id(), staged.attempt);
            disk::rename(built, &self.master(api, repo).join(name))?;
        }
        Ok(true)
    }

    fn begin(&self, repository: &RepositoryId, id: &PublicationId, attempt: &str) -> Result<Staged> {
        disk::create_dir_all(self.path())?;
        let path = self
            .path()
            .canonicalize()
            .map_err(PublicationError::io("find", self.path()))?;
        let root = Self::new(path);
        let attempt = attempt_name(attempt);
        let name = private_tree(id, &attempt);
        let private = |api| root.master(api, repository).join(&name);
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
            disk::create_dir_all(&root.master(api, repository))?;
        }
        disk::remove_tree(&staged.v1)?;
        disk::remove_tree(&staged.v2)?;
        Ok(staged)
    }
}

/// What the name of a spare copy has between the publication's id and the attempt that made it.
const SPARE: &str = "spare-";

/// Links and directories from which on a publication has a spare copy: less are made in the time of a few syncs.
const WORTH_A_SPARE: usize = 1_000;

/// A tree that was taken to be made into the next one: what it holds.
enum Taken {
    /// What the publication holds that is changed, which is known already.
    CopyOfBase,
    /// What it says itself.
    Other(Box<Published>),
}

impl Staged {
    /// Takes a tree that nobody reads any more under this attempt's own names. A tree that can't be used is no
    /// fault: what is under the private names then goes, and all is made anew.
    fn take_drained(&self, drained: Duration, base: &Published) -> Option<Taken> {
        let (repo, root) = (&self.repository, &self.root);
        let latest = root.drained(Api::V2, repo, drained).ok()?.into_iter().next()?;
        let v1 = root.master(Api::V1, repo).join(&latest);
        let take = || {
            if !root.drained(Api::V1, repo, drained)?.contains(&latest) {
                return Ok::<_, PublicationError>(None);
            }
            disk::rename(&root.master(Api::V2, repo).join(&latest), &self.v2)?;
            disk::rename(&v1, &self.v1)?;
            if latest.starts_with(&format!("{}.{SPARE}", base.id())) {
                return Ok(Some(Taken::CopyOfBase));
            }
            let old = Published::read(repo, self.v1.clone(), self.v2.clone())?;
            Ok(Some(Taken::Other(Box::new(old))))
        };
        match take() {
            Ok(Some(tree)) => Some(tree),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(repository = %repo, %error, "an old tree is of no use");
                let _ = (disk::remove_tree(&self.v1), disk::remove_tree(&self.v2));
                None
            }
        }
    }

    /// Makes this the repository's publication: the trees, the links to files, then the redirect files, so that a
    /// redirect file never names files that are not there; v2 before v1. Call it within the fence.
    pub fn switch(self) -> Result<()> {
        // Prepare first what may fail for want of space; then only renames are left.
        for api in Api::ALL {
            disk::create_dir_all(&self.root.web_dir(api))?;
            disk::create_dir_all(&self.root.app_dir(api))?;
            // From now on it is told how long the tree there is has had no new readers.
            for name in self.root.current(api, &self.repository) {
                let tree = self.root.master(api, &self.repository).join(name);
                if tree.exists() {
                    disk::set_modified(&tree, SystemTime::now())?;
                }
            }
        }
        // Each is on the disk before the next, which names it; that of both APIs at once.
        let mut unsynced = Unsynced::default();
        let v2 = self.place(Api::V2, &self.v2, &mut unsynced)?;
        let v1 = self.place(Api::V1, &self.v1, &mut unsynced)?;
        unsynced.sync()?;
        let mut unsynced = Unsynced::default();
        self.point_web(Api::V2, &v2, &mut unsynced)?;
        self.point_web(Api::V1, &v1, &mut unsynced)?;
        unsynced.sync()?;
        let mut unsynced = Unsynced::default();
        self.point_app(Api::V2, &v2, &mut unsynced)?;
        self.point_app(Api::V1, &v1, &mut unsynced)?;
        unsynced.sync()?;
        tracing::info!(repository = %self.repository, publication = %self.id, "published");
        Ok(())
    }

    /// Renames a built tree to its final name and returns that. A tree of this name is there if an earlier attempt
    /// at the same publication got this far; it may be the published one, so it is left alone.
    fn place(&self, api: Api, built: &Path, unsynced: &mut Unsynced) -> Result<String> {
        let master = self.root.master(api, &self.repository);
        let plain = self.id.to_string();
        let name = if master.join(&plain).exists() {
            format!("{plain}.{}", self.attempt)
        } else {
            plain
        };
        let place = master.join(&name);
        fs::rename(built, &place).map_err(PublicationError::io("rename to", place))?;
        unsynced.add(master);
        Ok(name)
    }

    /// A tree, as links beside `master` name it.
    fn tree_link(&self, name: &str) -> PathBuf {
        Path::new("..")
            .join("master")
            .join(self.repository.as_str())
            .join(name)
    }

    /// Points the link to the files at a tree.
    fn point_web(&self, api: Api, name: &str, unsynced: &mut Unsynced) -> Result<()> {
        let mut target = self.tree_link(name);
        if api == Api::V1 {
            target.push("web");
        }
        self.point(
            &target,
            self.root.web_dir(api),
            self.repository.as_str(),
            unsynced,
        )
    }

    /// Points the link to the redirect file at a tree's.
    fn point_app(&self, api: Api, name: &str, unsynced: &mut Unsynced) -> Result<()> {
        let file = format!("{}.json", self.repository);
        let target = self.tree_link(name).join(&file);
        self.point(&target, self.root.app_dir(api), &file, unsynced)
    }

    fn point(&self, target: &Path, dir: PathBuf, link: &str, unsynced: &mut Unsynced) -> Result<()> {
        let temporary = temporary_link(&self.repository, &self.attempt);
        disk::switch_link(target, &dir.join(link), &dir.join(temporary))?;
        unsynced.add(dir);
        Ok(())
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
