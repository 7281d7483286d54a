//! Writes an export: streamed, every blob and part hashed on its way by a thread of its own.

use std::{
    fs::{self, File},
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use bytes::Bytes;
use pulp_content::WriteBack;
use pulp_model::{Algorithm, Digest, VersionNumber, export::ExportLayout};

use crate::{
    Contents, SigningKey, TransferError,
    manifest::{Base, Carried, ExportManifest, ExportedRepository, MANIFEST_FILE, Part, SIGNATURE_FILE},
    tarball,
};

/// Bytes read, hashed and written at a time.
const CHUNK: u64 = 512 * 1024;
/// Chunks between the thread that writes and the one that hashes: a few megabytes, whatever the export's size.
const AHEAD: usize = 8;

/// What is to be exported.
#[derive(Debug)]
pub struct Wanted {
    /// The repository.
    pub repository: ExportedRepository,
    /// Its version.
    pub repository_version: VersionNumber,
    /// What the other side has; none for a full export.
    pub base: Option<Base>,
    /// All that the version holds.
    pub contents: Contents,
    /// [`Contents::index`].
    pub index: Vec<u8>,
    /// The files to carry, with their sizes, in the order in which they are written.
    pub files: Vec<(Digest, u64)>,
}

/// Where and how an export is written.
#[derive(Debug)]
pub struct Target {
    /// An empty directory of the writer's own; made if it isn't there.
    pub directory: PathBuf,
    /// As files, or as a tar.
    pub layout: ExportLayout,
    /// Most bytes of one part of the tar; none for a tar in one piece.
    pub part_size: Option<u64>,
}

/// Where blobs come from.
pub trait BlobSource {
    /// Opens a blob from its beginning.
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + '_>>;
}

/// Who watches an export.
pub trait ExportProgress {
    /// Whether to give up; asked for each chunk.
    fn is_stopped(&self) -> bool;
    /// Bytes of blobs were written.
    fn advanced(&self, bytes: u64);
    /// A file is whole.
    fn stored(&self);
}

/// Writes an export and puts it on the disk; gives its manifest and that file's digest. After an error the directory
/// holds rubbish.
pub fn write(
    wanted: Wanted,
    target: &Target,
    key: Option<&SigningKey>,
    source: &dyn BlobSource,
    progress: &dyn ExportProgress,
) -> Result<(ExportManifest, Digest), TransferError> {
    let directory = &target.directory;
    let writing = TransferError::writing(directory);
    fs::create_dir_all(directory).map_err(&writing)?;
    let needed = wanted.files.iter().map(|(_, size)| *size).sum();
    require_space(directory, needed)?;
    let mut manifest = ExportManifest::new(
        wanted.repository,
        wanted.repository_version,
        wanted.base,
        target.layout,
        wanted.contents,
    );
    let (sender, receiver) = sync_channel(AHEAD);
    let (sizes, carried, hashed) = thread::scope(|scope| {
        let in_parts = target.layout == ExportLayout::Tar;
        let hasher = scope.spawn(move || hash(&receiver, in_parts));
        let mut output = match target.layout {
            ExportLayout::Tar => Output::Tar(Tar {
                directory,
                stem: format!("{}.tar", manifest.repository.id),
                part_size: target.part_size,
                parts: Vec::new(),
                file: None,
                size: 0,
                write_back: WriteBack::default(),
                hasher: sender,
            }),
            ExportLayout::Directory => Output::Files(Files {
                directory,
                file: None,
                hasher: sender,
            }),
        };
        let written = copy(&mut output, &wanted.index, &wanted.files, source, progress);
        let written = written.and_then(|carried| Ok((carried, output.end()?)));
        let hashed = hasher.join().unwrap_or_else(|_| Err(gone()));
        // What the hasher found is the cause of what the writer met then.
        let hashed = hashed?;
        written.map(|(carried, sizes)| (sizes, carried, hashed))
    })?;
    manifest.carried = carried;
    manifest.parts = sizes
        .into_iter()
        .zip(hashed)
        .map(|((name, size), digest)| Part { name, size, digest })
        .collect();
    let bytes = manifest.to_bytes();
    if let Some(key) = key {
        let line = key.sign(&bytes)?;
        write_file(&directory.join(SIGNATURE_FILE), line.as_bytes())?;
    }
    write_file(&directory.join(MANIFEST_FILE), &bytes)?;
    let handle = File::open(directory).map_err(&writing)?;
    if target.layout == ExportLayout::Directory {
        // One call for any number of small files.
        rustix::fs::syncfs(&handle).map_err(|e| writing(e.into()))?;
    }
    handle.sync_all().map_err(&writing)?;
    Ok((manifest, Digest::sha256(&bytes)))
}

/// Refuses at once what can't end well.
fn require_space(directory: &Path, needed: u64) -> Result<(), TransferError> {
    // A file system that can't tell is no reason to refuse.
    if let Ok(space) = rustix::fs::statvfs(directory)
        && space.f_bavail.saturating_mul(space.f_frsize) < needed
    {
        return Err(TransferError::NoSpace {
            path: format!("{} ({needed} bytes are needed)", directory.display()),
        });
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), TransferError> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(TransferError::writing(path))
}

/// Writes the layout's files; says what blobs came along and where they are.
fn copy(
    output: &mut Output<'_>,
    index: &[u8],
    files: &[(Digest, u64)],
    source: &dyn BlobSource,
    progress: &dyn ExportProgress,
) -> Result<Vec<Carried>, TransferError> {
    output.small("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    output.small("index.json", index)?;
    let mut carried = Vec::new();
    for (digest, size) in files {
        let path = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        let offset = output.begin(&path, digest, *size)?;
        let reading = |source| TransferError::Io {
            what: format!("read blob {digest}"),
            source,
        };
        let mut blob = source.open(digest).map_err(reading)?;
        let mut left = *size;
        while left > 0 {
            if progress.is_stopped() {
                return Err(TransferError::Stopped);
            }
            let mut chunk = Vec::with_capacity(left.min(CHUNK) as usize);
            let n = (&mut blob)
                .take(left.min(CHUNK))
                .read_to_end(&mut chunk)
                .map_err(reading)?;
            if n == 0 {
                break;
            }
            left -= n as u64;
            output.put(chunk.into())?;
            progress.advanced(n as u64);
        }
        // A blob that ended early hashes to something else, which the hasher tells.
        output.finish(digest, *size)?;
        carried.push(Carried {
            digest: digest.clone(),
            size: *size,
            offset,
        });
        progress.stored();
    }
    Ok(carried)
}

/// What the hasher is told, in the order of the bytes.
enum Message {
    /// A blob begins.
    BlobBegin(Algorithm),
    /// Bytes of a blob.
    Blob(Bytes),
    /// The blob ends, and should have this digest.
    BlobEnd(Digest),
    /// Bytes of a part that are none of a blob.
    Around(Bytes),
    /// The part ends.
    PartEnd,
}

/// Hashes blobs, and parts if there are such; gives the parts' digests.
fn hash(receiver: &Receiver<Message>, in_parts: bool) -> Result<Vec<Digest>, TransferError> {
    let new = || Algorithm::Sha256.hasher();
    let (mut blob, mut part, mut parts) = (new(), new(), Vec::new());
    for message in receiver {
        match message {
            Message::BlobBegin(algorithm) => blob = algorithm.hasher(),
            Message::Blob(bytes) => {
                blob.update(&bytes);
                if in_parts {
                    part.update(&bytes);
                }
            }
            Message::BlobEnd(expected) => {
                let got = std::mem::replace(&mut blob, new()).finish();
                if got != expected {
                    return Err(TransferError::SourceDamaged { expected, got });
                }
            }
            Message::Around(bytes) => part.update(&bytes),
            Message::PartEnd => parts.push(std::mem::replace(&mut part, new()).finish()),
        }
    }
    Ok(parts)
}

/// The hasher ended before its time; its own error says why.
fn gone() -> TransferError {
    TransferError::Io {
        what: "hash the export".to_owned(),
        source: io::ErrorKind::BrokenPipe.into(),
    }
}

fn tell(hasher: &SyncSender<Message>, message: Message) -> Result<(), TransferError> {
    hasher.send(message).map_err(|_| gone())
}

/// Where the layout's files go.
enum Output<'a> {
    Tar(Tar<'a>),
    Files(Files<'a>),
}

impl Output<'_> {
    /// Writes a file that is none of the blobs.
    fn small(&mut self, path: &str, content: &[u8]) -> Result<(), TransferError> {
        match self {
            Self::Tar(tar) => {
                let size = content.len() as u64;
                tar.around(tarball::before(path, size))?;
                tar.around(content.to_vec())?;
                tar.around(vec![0; tarball::after(size)])
            }
            Self::Files(files) => {
                let path = files.directory.join(path);
                fs::write(&path, content).map_err(TransferError::writing(&path))
            }
        }
    }

    /// Begins a blob; says where in the tar its bytes will be.
    fn begin(&mut self, path: &str, digest: &Digest, size: u64) -> Result<Option<u64>, TransferError> {
        let offset = match self {
            Self::Tar(tar) => {
                tar.around(tarball::before(path, size))?;
                Some(tar.size)
            }
            Self::Files(files) => {
                files.open(path)?;
                None
            }
        };
        tell(self.hasher(), Message::BlobBegin(digest.algorithm()))?;
        Ok(offset)
    }

    /// Adds bytes of the blob.
    fn put(&mut self, bytes: Bytes) -> Result<(), TransferError> {
        match self {
            Self::Tar(tar) => tar.put(bytes, Message::Blob),
            Self::Files(files) => files.put(bytes),
        }
    }

    /// Ends the blob.
    fn finish(&mut self, digest: &Digest, size: u64) -> Result<(), TransferError> {
        tell(self.hasher(), Message::BlobEnd(digest.clone()))?;
        match self {
            Self::Tar(tar) => tar.around(vec![0; tarball::after(size)]),
            Self::Files(files) => {
                files.file = None;
                Ok(())
            }
        }
    }

    /// Ends the output; gives names and sizes of the parts.
    fn end(self) -> Result<Vec<(String, u64)>, TransferError> {
        match self {
            Self::Tar(tar) => tar.end(),
            Self::Files(_) => Ok(Vec::new()),
        }
    }

    const fn hasher(&self) -> &SyncSender<Message> {
        match self {
            Self::Tar(tar) => &tar.hasher,
            Self::Files(files) => &files.hasher,
        }
    }
}

/// A tar that is cut into parts as it grows.
struct Tar<'a> {
    directory: &'a Path,
    stem: String,
    part_size: Option<u64>,
    /// Names and sizes; the last one is being written.
    parts: Vec<(String, u64)>,
    file: Option<File>,
    /// Bytes of all parts.
    size: u64,
    write_back: WriteBack,
    hasher: SyncSender<Message>,
}

impl Tar<'_> {
    fn around(&mut self, bytes: Vec<u8>) -> Result<(), TransferError> {
        self.put(bytes.into(), Message::Around)
    }

    fn put(&mut self, mut bytes: Bytes, message: fn(Bytes) -> Message) -> Result<(), TransferError> {
        while !bytes.is_empty() {
            let written = self.parts.last().map_or(0, |(_, size)| *size);
            let room = self
                .part_size
                .map_or(u64::MAX, |most| most.saturating_sub(written));
            if self.file.is_none() || room == 0 {
                self.next_part()?;
                continue;
            }
            let piece = bytes.split_to(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let Some((name, size)) = self.parts.last_mut() else {
                return Err(gone());
            };
            let path = self.directory.join(name);
            if let Some(file) = &mut self.file {
                *size += piece.len() as u64;
                file.write_all(&piece)
                    .and_then(|()| self.write_back.grown(file, *size))
                    .map_err(TransferError::writing(&path))?;
            }
            self.size += piece.len() as u64;
            tell(&self.hasher, message(piece))?;
        }
        Ok(())
    }

    fn next_part(&mut self) -> Result<(), TransferError> {
        self.end_part()?;
        let name = match self.part_size {
            Some(_) => format!("{}.{:04}", self.stem, self.parts.len() + 1),
            None => self.stem.clone(),
        };
        let path = self.directory.join(&name);
        self.file = Some(File::create(&path).map_err(TransferError::writing(&path))?);
        self.parts.push((name, 0));
        Ok(())
    }

    fn end_part(&mut self) -> Result<(), TransferError> {
        let (Some(file), Some((name, _))) = (self.file.take(), self.parts.last()) else {
            return Ok(());
        };
        std::mem::take(&mut self.write_back)
            .end()
            .and_then(|()| file.sync_all())
            .map_err(TransferError::writing(&self.directory.join(name)))?;
        tell(&self.hasher, Message::PartEnd)
    }

    fn end(mut self) -> Result<Vec<(String, u64)>, TransferError> {
        self.around(vec![0; tarball::end(self.size)])?;
        self.end_part()?;
        Ok(self.parts)
    }
}

/// A layout as files.
struct Files<'a> {
    directory: &'a Path,
    file: Option<(PathBuf, File)>,
    hasher: SyncSender<Message>,
}

impl Files<'_> {
    fn open(&mut self, path: &str) -> Result<(), TransferError> {
        let path = self.directory.join(path);
        let above = path.parent().unwrap_or(self.directory);
        let file = fs::create_dir_all(above)
            .and_then(|()| File::create(&path))
            .map_err(TransferError::writing(&path))?;
        self.file = Some((path, file));
        Ok(())
    }

    fn put(&mut self, bytes: Bytes) -> Result<(), TransferError> {
        if let Some((path, file)) = &mut self.file {
            file.write_all(&bytes).map_err(TransferError::writing(path))?;
        }
        tell(&self.hasher, Message::Blob(bytes))
    }
}
