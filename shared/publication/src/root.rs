//! The publish directory: where things lie, and how they are removed.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use pulp_model::RepositoryId;

use crate::{PublicationError, PublicationId, fs as disk};

type Result<T> = std::result::Result<T, PublicationError>;

/// The two APIs that a repository is published for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    V1,
    V2,
}

impl Api {
    pub(crate) const ALL: [Self; 2] = [Self::V2, Self::V1];
}

/// The publish directory, by default `/var/lib/pulp/published/docker`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
}

/// What pruning removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The directories removed.
    pub removed: Vec<PathBuf>,
}

impl Root {
    /// The directory at `path`; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn base(&self, api: Api) -> PathBuf {
        match api {
            Api::V1 => self.path.clone(),
            Api::V2 => self.path.join("v2"),
        }
    }

    pub(crate) fn app_dir(&self, api: Api) -> PathBuf {
        self.base(api).join("app")
    }

    pub(crate) fn web_dir(&self, api: Api) -> PathBuf {
        self.base(api).join("web")
    }

    pub(crate) fn master(&self, api: Api, repo: &RepositoryId) -> PathBuf {
        self.base(api).join("master").join(repo.as_str())
    }

    /// The directories that hold the redirect files, v1 and v2: what Crane scans and watches.
    pub fn app_dirs(&self) -> [PathBuf; 2] {
        [self.app_dir(Api::V1), self.app_dir(Api::V2)]
    }

    /// Where a repository's export goes unless it is told another place.
    pub fn export_file(&self, repo: &RepositoryId) -> PathBuf {
        self.path.join("export").join("repo").join(format!("{repo}.tar"))
    }

    /// Whether the repository is published.
    pub fn is_published(&self, repo: &RepositoryId) -> bool {
        self.app_dir(Api::V2).join(format!("{repo}.json")).exists()
    }

    /// Makes the directories that a publication's links go to, so that Crane can watch them from the start.
    pub fn prepare(&self) -> Result<()> {
        for api in Api::ALL {
            disk::create_dir_all(&self.web_dir(api))?;
            disk::create_dir_all(&self.app_dir(api))?;
        }
        Ok(())
    }

    /// Removes a repository's older publications, of each API. The published one stays, and so do the
    /// `keep_previous` latest before it, of which the next change is made, and all that were published within
    /// `drained`: a reader may still be in them. What is removed gets a name private to `attempt` before, as
    /// [`Root::stage`] is given it: the next publication, which may be under way already, can't take it any more.
    pub fn prune(
        &self,
        repo: &RepositoryId,
        attempt: &str,
        keep_previous: usize,
        drained: Duration,
    ) -> Result<Pruned> {
        let attempt = attempt_name(attempt);
        let mut pruned = Pruned::default();
        for api in Api::ALL {
            let master = self.master(api, repo);
            let old = self.older(api, repo)?;
            let kept: BTreeSet<&String> = old.iter().take(keep_previous).collect();
            for name in self.drained(api, repo, drained)? {
                let Some(id) = publication_of(&name).filter(|_| !kept.contains(&name)) else {
                    continue;
                };
                let (path, private) = (master.join(&name), master.join(private_tree(&id, &attempt)));
                disk::remove_tree(&private)?;
                // Gone by now if the next publication was quicker, which may have it.
                if disk::rename_if_there(&path, &private)? {
                    disk::remove_tree(&private)?;
                    pruned.removed.push(path);
                }
            }
        }
        Ok(pruned)
    }

    /// Names of the trees that are not the published one, the latest first.
    fn older(&self, api: Api, repo: &RepositoryId) -> Result<Vec<String>> {
        let current = self.current(api, repo);
        let mut old: Vec<String> = disk::names(&self.master(api, repo))?
            .into_iter()
            .filter(|name| !current.contains(name))
            .filter_map(|name| name.into_string().ok())
            .filter(|name| publication_of(name).is_some())
            .collect();
        // Ids grow with time.
        old.sort_unstable_by(|a, b| b.cmp(a));
        Ok(old)
    }

    /// Of these, the ones that have not been the published one for that long: their readers are gone.
    pub(crate) fn drained(&self, api: Api, repo: &RepositoryId, drained: Duration) -> Result<Vec<String>> {
        let master = self.master(api, repo);
        let mut old = self.older(api, repo)?;
        old.retain(|name| age(&master.join(name)).is_some_and(|age| age >= drained));
        Ok(old)
    }

    /// Attempts that have something of this repository under their private names, as [`Root::stage`] was given them
    /// (characters other than letters, digits and dashes replaced by `_`).
    pub fn attempts(&self, repo: &RepositoryId) -> Result<BTreeSet<String>> {
        let mut attempts = BTreeSet::new();
        for api in Api::ALL {
            for name in disk::names(&self.master(api, repo))? {
                attempts.extend(name.to_str().and_then(attempt_of_tree).map(str::to_owned));
            }
            for dir in [self.web_dir(api), self.app_dir(api)] {
                for name in disk::names(&dir)? {
                    attempts.extend(
                        name.to_str()
                            .and_then(|n| attempt_of_link(n, repo))
                            .map(str::to_owned),
                    );
                }
            }
        }
        Ok(attempts)
    }

    /// Removes what given-up attempts at publishing left behind. `is_dead` gets the text that was given to
    /// [`Root::stage`] (characters other than letters, digits and dashes replaced by `_`) and must be true only if
    /// that attempt can't be running any more.
    pub fn remove_abandoned(&self, repo: &RepositoryId, is_dead: impl Fn(&str) -> bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for api in Api::ALL {
            let master = self.master(api, repo);
            for name in disk::names(&master)? {
                if name.to_str().and_then(attempt_of_tree).is_some_and(&is_dead) {
                    disk::remove_tree(&master.join(&name))?;
                    pruned.removed.push(master.join(&name));
                }
            }
            for dir in [self.web_dir(api), self.app_dir(api)] {
                for name in disk::names(&dir)? {
                    let attempt = name.to_str().and_then(|n| attempt_of_link(n, repo));
                    if attempt.is_some_and(&is_dead) {
                        disk::remove_file(&dir.join(&name))?;
                    }
                }
            }
        }
        Ok(pruned)
    }

    /// Removes a repository from the published ones: redirect files first, so that nothing points at files that go,
    /// then the links to the files, then the files. Fine if it is not there or half removed.
    pub fn unpublish(&self, repo: &RepositoryId) -> Result<()> {
        for api in Api::ALL {
            let app = self.app_dir(api);
            if disk::remove_file(&app.join(format!("{repo}.json")))? {
                disk::sync(&app)?;
            }
        }
        for api in Api::ALL {
            let web = self.web_dir(api);
            if disk::remove_file(&web.join(repo.as_str()))? {
                disk::sync(&web)?;
            }
        }
        for api in Api::ALL {
            let master = self.master(api, repo);
            // No repository id has a `+`.
            let gone = master.with_file_name(format!(".gone+{repo}"));
            // What an earlier try left.
            disk::remove_tree(&gone)?;
            // A spare copy may still be made in there: under another name nothing is added to it any more.
            if disk::rename_if_there(&master, &gone)? {
                disk::remove_tree(&gone)?;
            }
        }
        Ok(())
    }

    /// The tree that the redirect file of an API lies in.
    pub(crate) fn current_by_redirect_file(&self, api: Api, repo: &RepositoryId) -> Option<PathBuf> {
        let target = fs::read_link(self.app_dir(api).join(format!("{repo}.json"))).ok()?;
        let below = target
            .strip_prefix(Path::new("..").join("master").join(repo.as_str()))
            .ok()?;
        Some(self.master(api, repo).join(below.parent()?))
    }

    /// Names of the trees that this API's links point to: one, or two in the middle of a switch.
    pub(crate) fn current(&self, api: Api, repo: &RepositoryId) -> BTreeSet<OsString> {
        let master = Path::new("..").join("master").join(repo.as_str());
        [
            self.app_dir(api).join(format!("{repo}.json")),
            self.web_dir(api).join(repo.as_str()),
        ]
        .iter()
        .filter_map(|link| fs::read_link(link).ok())
        .filter_map(|target| Some(target.strip_prefix(&master).ok()?.iter().next()?.to_owned()))
        .collect()
    }
}

/// `<publication>` or `<publication>.<attempt>`.
fn publication_of(name: &str) -> Option<PublicationId> {
    name.split_once('.').map_or(name, |(id, _)| id).parse().ok()
}

/// Name of a tree that is an attempt's own.
pub(crate) fn private_tree(id: &PublicationId, attempt: &str) -> String {
    format!(".{id}.{attempt}.tmp")
}

/// The attempt in a [`private_tree`].
fn attempt_of_tree(name: &str) -> Option<&str> {
    let (id, attempt) = name.strip_prefix('.')?.strip_suffix(".tmp")?.split_once('.')?;
    id.parse::<PublicationId>().ok().map(|_| attempt)
}

/// Name of a link that is about to be renamed over the real one. No repository id has a `+`.
pub(crate) fn temporary_link(repo: &RepositoryId, attempt: &str) -> String {
    format!(".tmp+{attempt}+{repo}")
}

/// The attempt in a [`temporary_link`].
fn attempt_of_link<'a>(name: &'a str, repo: &RepositoryId) -> Option<&'a str> {
    let (attempt, of) = name.strip_prefix(".tmp+")?.split_once('+')?;
    (of == repo.as_str()).then_some(attempt)
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

fn age(path: &Path) -> Option<Duration> {
    let made = fs::symlink_metadata(path).ok()?.modified().ok()?;
    // A tree from the future (clocks differ between hosts) counts as new.
    Some(SystemTime::now().duration_since(made).unwrap_or_default())
}
