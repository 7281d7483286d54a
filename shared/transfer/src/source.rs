//! Reads an export: what it says it is, who vouches for it, and the bytes of its blobs wherever they lie.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use pulp_model::{Algorithm, Digest, export::ExportLayout};

use crate::{
    TransferError, TrustedKeys,
    manifest::{Carried, ExportManifest, MANIFEST_FILE, MAX_MANIFEST_BYTES, SIGNATURE_FILE},
};

/// A signature's file has one short line.
const MAX_SIGNATURE_BYTES: u64 = 4096;
/// Bytes hashed at a time when a part is looked at again.
const CHUNK: usize = 512 * 1024;

/// An export whose manifest was read and is vouched for.
#[derive(Debug)]
pub struct Export {
    directory: PathBuf,
    /// What it says it is.
    pub manifest: ExportManifest,
    /// Digest of the manifest's file.
    pub digest: Digest,
    /// The key that signed it; none for an unsigned export that was taken all the same.
    pub signed_by: Option<Digest>,
}

impl Export {
    /// Reads manifest and signature. `require_signature` refuses an export without; one with a signature that no
    /// trusted key made is refused in any case, unless no key is trusted and none asked for.
    pub fn open(
        directory: &Path,
        trusted: &TrustedKeys,
        require_signature: bool,
    ) -> Result<Self, TransferError> {
        let bytes = read_small(&directory.join(MANIFEST_FILE), MAX_MANIFEST_BYTES)?
            .ok_or_else(|| TransferError::not_an_export(format!("it has no file {MANIFEST_FILE}")))?;
        let signature = read_small(&directory.join(SIGNATURE_FILE), MAX_SIGNATURE_BYTES)?;
        let signed_by = match signature {
            Some(line) if require_signature || !trusted.is_empty() => {
                Some(trusted.verify(&bytes, &String::from_utf8_lossy(&line))?)
            }
            None if require_signature => return Err(TransferError::Unsigned),
            _ => None,
        };
        Ok(Self {
            directory: directory.to_owned(),
            manifest: ExportManifest::parse(&bytes)?,
            digest: Digest::sha256(&bytes),
            signed_by,
        })
    }

    /// Of `wanted` blobs, those whose files are here and have the right sizes; and the names of the files that are
    /// not. A file of another size is an error: it was not copied whole.
    pub fn present(&self, wanted: Vec<Carried>) -> Result<(Vec<Carried>, Vec<String>), TransferError> {
        let mut sizes = std::collections::HashMap::new();
        let (mut present, mut missing) = (Vec::new(), BTreeSet::new());
        for blob in wanted {
            let mut whole = true;
            for piece in self.pieces(&blob) {
                let here = if let Some(here) = sizes.get(&piece.name) {
                    *here
                } else {
                    let here = self.check_size(&piece.name, piece.file_size)?;
                    sizes.insert(piece.name.clone(), here);
                    here
                };
                if !here {
                    missing.insert(piece.name);
                    whole = false;
                }
            }
            if whole {
                present.push(blob);
            }
        }
        Ok((present, missing.into_iter().collect()))
    }

    /// Opens a blob of this export. What comes is not verified.
    pub fn open_blob(&self, blob: &Carried) -> Result<BlobRead, TransferError> {
        let pieces = self
            .pieces(blob)
            .into_iter()
            .map(|piece| {
                let path = self.directory.join(&piece.name);
                let file = open_file(&path)
                    .map_err(TransferError::reading(&path))?
                    .ok_or_else(|| TransferError::PartMissing(vec![piece.name.clone()]))?;
                Ok(OpenPiece {
                    file,
                    at: piece.at,
                    left: piece.length,
                })
            })
            .collect::<Result<Vec<_>, TransferError>>()?;
        Ok(BlobRead {
            pieces: pieces.into_iter().rev().collect(),
        })
    }

    /// Why a blob hashes to something else than it should: hashes the files that it lies in.
    pub fn blame(&self, blob: &Carried) -> TransferError {
        for piece in self.pieces(blob) {
            let path = self.directory.join(&piece.name);
            let got = match hash_file(&path, piece.digest.algorithm()) {
                Ok(got) => got,
                Err(e) => return TransferError::reading(&path)(e),
            };
            if got != piece.digest {
                return TransferError::PartDamaged {
                    name: piece.name,
                    expected: piece.digest,
                    got,
                };
            }
        }
        TransferError::BlobDamaged(blob.digest.clone())
    }

    /// Whether the file is here; an error if it has another size than it should.
    fn check_size(&self, name: &str, expected: u64) -> Result<bool, TransferError> {
        let path = self.directory.join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if !meta.is_file() => {
                Err(TransferError::not_an_export(format!("{name} is no regular file")))
            }
            Ok(meta) if meta.len() == expected => Ok(true),
            Ok(meta) => Err(TransferError::PartTruncated {
                name: name.to_owned(),
                size: meta.len(),
                expected,
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(TransferError::reading(&path)(e)),
        }
    }

    /// The pieces of files that make a blob, in their order.
    fn pieces(&self, blob: &Carried) -> Vec<Piece> {
        let digest = &blob.digest;
        if self.manifest.layout == ExportLayout::Directory {
            return vec![Piece {
                name: format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex()),
                file_size: blob.size,
                digest: digest.clone(),
                at: 0,
                length: blob.size,
            }];
        }
        // The manifest was refused if a blob lay beyond the parts.
        let begin = blob.offset.unwrap_or(0);
        let end = begin.saturating_add(blob.size);
        let mut pieces = Vec::new();
        let mut from = 0u64;
        for part in &self.manifest.parts {
            let to = from.saturating_add(part.size);
            let (first, last) = (begin.max(from), end.min(to));
            if first < last {
                pieces.push(Piece {
                    name: part.name.clone(),
                    file_size: part.size,
                    digest: part.digest.clone(),
                    at: first - from,
                    length: last - first,
                });
            }
            from = to;
        }
        pieces
    }
}

/// A stretch of a file.
struct Piece {
    name: String,
    /// What the whole file should have.
    file_size: u64,
    /// What the whole file should hash to.
    digest: Digest,
    at: u64,
    length: u64,
}

struct OpenPiece {
    file: File,
    at: u64,
    left: u64,
}

/// A blob being read, from as many files as it lies in.
pub struct BlobRead {
    /// The next one last.
    pieces: Vec<OpenPiece>,
}

impl Read for BlobRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.pieces.last_mut() {
            let most = buffer
                .len()
                .min(usize::try_from(piece.left).unwrap_or(usize::MAX));
            if most == 0 && !buffer.is_empty() {
                self.pieces.pop();
                continue;
            }
            let n = piece
                .file
                .read_at(buffer.get_mut(..most).unwrap_or_default(), piece.at)?;
            if n == 0 && most > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            piece.at += n as u64;
            piece.left -= n as u64;
            return Ok(n);
        }
        Ok(0)
    }
}

/// A regular file and nothing else: no link, no device, no pipe. None if it isn't there.
fn open_file(path: &Path) -> io::Result<Option<File>> {
    let not_regular = || io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => return Err(not_regular()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    }
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(Some(file))
    } else {
        Err(not_regular())
    }
}

/// A file of at most `limit` bytes; none if it isn't there.
fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TransferError> {
    let fault = |e: io::Error| match e.kind() {
        io::ErrorKind::InvalidInput => TransferError::not_an_export(format!("{}: {e}", path.display())),
        _ => TransferError::reading(path)(e),
    };
    let Some(file) = open_file(path).map_err(fault)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() as u64 > limit {
        return Err(TransferError::not_an_export(format!(
            "{} has more than {limit} bytes",
            path.display()
        )));
    }
    Ok(Some(bytes))
}

fn hash_file(path: &Path, algorithm: Algorithm) -> io::Result<Digest> {
    let mut file = open_file(path)?.ok_or(io::ErrorKind::NotFound)?;
    let mut hasher = algorithm.hasher();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}
