//! Blobs in a directory.
//!
//! Written with `std::fs` and not through `object_store`, whose local store writes each part by a call of its
//! own on another thread, reads 8 KiB at a time, and leaves the file's mode to the umask.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Read as _, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use pulp_model::{Algorithm, Digest, digest::Hasher};

use crate::{BlobReader, ContentError, Result, cut, disk::Disk, key, write_back::WriteBack};

/// Bytes read by one call; large enough that calls don't matter, small enough for many readers.
const READ_CHUNK: u64 = 256 * 1024;
/// Small pieces are gathered up to this many bytes; larger ones go to the file as they are.
const WRITE_BUFFER: usize = 256 * 1024;

/// A directory of blobs.
#[derive(Debug)]
pub(crate) struct Local {
    root: PathBuf,
    /// None if nothing need outlive a crash of the machine.
    disk: Option<Disk>,
}

impl Local {
    pub(crate) fn open(root: &Path, fsync: bool) -> Result<Self> {
        if !root.is_absolute() {
            return Err(ContentError::Config {
                url: format!("file:{}", root.display()),
                reason: "the path must be absolute".to_owned(),
            });
        }
        let tmp = root.join(key::TMP);
        fs::create_dir_all(&tmp).map_err(|e| ContentError::file("make", &tmp, e))?;
        let disk = fsync.then(|| Disk::of(root)).transpose();
        Ok(Self {
            root: root.to_owned(),
            disk: disk.map_err(|e| ContentError::file("open", root, e))?,
        })
    }

    pub(crate) fn path_of(&self, digest: &Digest) -> PathBuf {
        self.root.join(key::of_blob(digest))
    }

    pub(crate) fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        size_of(&self.path_of(digest))
    }

    pub(crate) fn delete(&self, digest: &Digest) -> Result<bool> {
        let path = self.path_of(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(ContentError::file("remove", &path, e)),
        }
    }

    /// What the stored bytes hash to, and how many they are.
    pub(crate) fn hash(&self, digest: &Digest) -> Result<(Digest, u64)> {
        let path = self.path_of(digest);
        let mut file = open(&path, digest)?;
        let mut hasher = digest.algorithm().hasher();
        let mut buffer = vec![0; READ_CHUNK as usize];
        let mut size = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok((hasher.finish(), size)),
                Ok(n) => {
                    hasher.update(buffer.get(..n).unwrap_or_default());
                    size += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(ContentError::file("read", &path, e)),
            }
        }
    }

    /// Removes files below `prefix` last written `age` ago or earlier, and directories that are empty then.
    pub(crate) fn sweep(&self, prefix: &str, age: Duration) -> Result<usize> {
        let before = SystemTime::now()
            .checked_sub(age)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let removed = sweep_directory(&self.root.join(prefix), before, prefix != key::TMP)?;
        if removed > 0 {
            tracing::info!(
                removed,
                prefix,
                "removed temporary files that nobody writes any more"
            );
        }
        Ok(removed)
    }

    /// Names of the directories right below `prefix`.
    pub(crate) fn names_below(&self, prefix: &str) -> Result<Vec<String>> {
        let directory = self.root.join(prefix);
        let list = || {
            let mut names = Vec::new();
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    names.extend(entry.file_name().into_string());
                }
            }
            Ok::<_, io::Error>(names)
        };
        match list() {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(|e| ContentError::file("list", &directory, e)),
        }
    }

    /// Makes `sha256/ab` and sees that its name is on the disk.
    fn make_directory_of(&self, path: &Path) -> Result<PathBuf> {
        let directory = path.parent().unwrap_or(&self.root).to_owned();
        if !directory.is_dir() {
            fs::create_dir_all(&directory).map_err(|e| ContentError::file("make", &directory, e))?;
            for above in directory
                .ancestors()
                .skip(1)
                .take_while(|a| a.starts_with(&self.root))
            {
                self.sync_directory(above)?;
            }
        }
        Ok(directory)
    }

    fn sync_directory(&self, path: &Path) -> Result<()> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        File::open(path)
            .and_then(|directory| disk.sync(&directory))
            .map_err(|e| ContentError::file("sync", path, e))
    }
}

fn size_of(path: &Path) -> Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
        Ok(_) => Err(ContentError::file(
            "use",
            path,
            io::Error::other("it is no regular file"),
        )),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ContentError::file("look at", path, e)),
    }
}

fn open(path: &Path, digest: &Digest) -> Result<File> {
    File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => ContentError::NotFound(digest.clone()),
        _ => ContentError::file("open", path, e),
    })
}

/// A file or directory that another sweep or its owner removed meanwhile is fine.
fn sweep_directory(directory: &Path, before: SystemTime, itself: bool) -> Result<usize> {
    let gone = |e: &io::Error| e.kind() == ErrorKind::NotFound;
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if gone(&e) => return Ok(0),
        Err(e) => return Err(ContentError::file("list", directory, e)),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(|e| ContentError::file("list", directory, e))?;
        let path = entry.path();
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            Err(e) if gone(&e) => continue,
            Err(e) => return Err(ContentError::file("look at", &path, e)),
        };
        if meta.is_dir() {
            removed += sweep_directory(&path, before, true)?;
        } else if meta.modified().is_ok_and(|at| at <= before) {
            match fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(e) if gone(&e) => {}
                Err(e) => return Err(ContentError::file("remove", &path, e)),
            }
        }
    }
    if itself {
        // Fails where something young is left, which is what we want.
        let _ = fs::remove_dir(directory);
    }
    Ok(removed)
}

/// Opens a blob and streams a part of it. Each chunk is a call of its own on a blocking thread, so that a
/// client that reads slowly holds no thread.
pub(crate) async fn read(
    local: Arc<Local>,
    digest: &Digest,
    range: Option<Range<u64>>,
) -> Result<BlobReader> {
    let path = local.path_of(digest);
    let digest = digest.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let file = open(&path, &digest)?;
        let size = file
            .metadata()
            .map_err(|e| ContentError::file("look at", &path, e))?
            .len();
        let range = cut(&digest, size, range)?;
        Ok::<_, ContentError>((file, path, size, range))
    });
    let (file, path, size, range) = opened.await.map_err(ContentError::task)??;
    let state = (Arc::new(file), Arc::new(path), range.clone());
    let stream = stream::try_unfold(state, |(file, path, rest)| async move {
        if rest.is_empty() {
            return Ok(None);
        }
        let length = (rest.end - rest.start).min(READ_CHUNK);
        let (at, reader, name) = (rest.start, file.clone(), path.clone());
        let chunk = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; length as usize];
            read_exact_at(&reader, &mut buffer, at).map_err(|e| ContentError::file("read", &name, e))?;
            Ok::<_, ContentError>(Bytes::from(buffer))
        });
        let chunk = chunk.await.map_err(ContentError::task)??;
        Ok(Some((chunk, (file, path, rest.start + length..rest.end))))
    });
    Ok(BlobReader {
        size,
        range,
        stream: stream.boxed(),
    })
}

fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

/// A temporary file that is hashed while it grows. Dropped, it is gone.
pub(crate) struct LocalWriter {
    local: Arc<Local>,
    file: BufWriter<File>,
    temporary: Temporary,
    hasher: Hasher,
    algorithm: Algorithm,
    size: u64,
    write_back: WriteBack,
}

impl LocalWriter {
    pub(crate) fn new(local: Arc<Local>, owner: &str, algorithm: Algorithm) -> Result<Self> {
        let path = local.root.join(key::of_temporary(owner)?);
        let file = create(&path).map_err(|e| ContentError::file("make", &path, e))?;
        Ok(Self {
            local,
            file: BufWriter::with_capacity(WRITE_BUFFER, file),
            temporary: Temporary { path, pending: true },
            hasher: algorithm.hasher(),
            algorithm,
            size: 0,
            write_back: WriteBack::default(),
        })
    }

    pub(crate) const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|e| ContentError::file("write", &self.temporary.path, e))?;
        if self.local.disk.is_some() {
            self.write_back
                .grown(self.file.get_ref(), self.size)
                .map_err(|e| ContentError::file("sync", &self.temporary.path, e))?;
        }
        Ok(())
    }

    /// Keeps the file under the digest of what was written.
    pub(crate) fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let size = self.size;
        let sealed = self.seal(expected)?;
        let digest = sealed.digest.clone();
        sealed.keep()?;
        Ok((digest, size))
    }

    /// Checks what was written and puts it on the disk, still under its temporary name.
    pub(crate) fn seal(mut self, expected: Option<&Digest>) -> Result<SealedFile> {
        let got = self.hasher.finish();
        if let Some(expected) = expected.filter(|e| **e != got) {
            return Err(ContentError::Mismatch {
                expected: expected.clone(),
                got,
                size: self.size,
            });
        }
        // Without its buffer: many may wait for the disk.
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error);
        let file = file.map_err(|e| ContentError::file("write", &self.temporary.path, e))?;
        self.write_back
            .end()
            .map_err(|e| ContentError::file("sync", &self.temporary.path, e))?;
        if let Some(disk) = &self.local.disk
            && size_of(&self.local.path_of(&got))? != Some(self.size)
        {
            disk.sync(&file)
                .map_err(|e| ContentError::file("sync", &self.temporary.path, e))?;
        }
        Ok(SealedFile {
            local: self.local,
            temporary: self.temporary,
            digest: got,
            size: self.size,
        })
    }
}

/// A file whose bytes are complete and checked; it holds no descriptor and no buffer.
pub(crate) struct SealedFile {
    local: Arc<Local>,
    temporary: Temporary,
    digest: Digest,
    size: u64,
}

impl SealedFile {
    pub(crate) const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Gives it the name of its digest.
    pub(crate) fn keep(mut self) -> Result<()> {
        let destination = self.local.path_of(&self.digest);
        if size_of(&destination)? == Some(self.size) {
            // Somebody was here before us; it may be that their rename is not on the disk yet.
            return self
                .local
                .sync_directory(destination.parent().unwrap_or(&self.local.root));
        }
        let directory = self.local.make_directory_of(&destination)?;
        // Two that commit the same digest at once rename the same bytes over each other: readers keep the file
        // that they opened. And a file of another size than its digest's bytes have is damaged, so it goes.
        fs::rename(&self.temporary.path, &destination)
            .map_err(|e| ContentError::file("keep", &destination, e))?;
        self.temporary.pending = false;
        self.local.sync_directory(&directory)
    }
}

/// A temporary file's name; the file goes with it.
struct Temporary {
    path: PathBuf,
    /// Whether `path` still is ours to remove.
    pending: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.pending
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "can't remove a temporary file; the sweep will");
        }
    }
}

/// Makes the file, readable by a web server of any user, and the owner's directory.
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = path.parent().unwrap_or(path);
    let mut tries = 0;
    let file = loop {
        fs::create_dir_all(directory)?;
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => break file,
            // A sweep took the empty directory between the two calls.
            Err(e) if e.kind() == ErrorKind::NotFound && tries < 5 => tries += 1,
            Err(e) => return Err(e),
        }
    };
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    Ok(file)
}
