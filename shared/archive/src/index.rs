//! The members of an archive: where each one's bytes are, and where links lead.
//!
//! Nothing is ever unpacked. A name is only a key of this index, a link only leads from key to key.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use crate::{
    ArchiveError, Limits, Progress, Rejection,
    header::{BLOCK, Head, Headers, Kind, Step, padded},
};

/// Links that lead to links, at most.
const MAX_HOPS: usize = 16;

/// Where the bytes of a member are. Two names of the same place are links of one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    offset: u64,
    pub(crate) size: u64,
}

#[derive(Debug)]
enum Entry {
    File(Place),
    Directory,
    /// Name of the target, from the root of the archive.
    Link(String),
}

/// All members of a tar file.
#[derive(Debug)]
pub(crate) struct Index {
    file: File,
    entries: BTreeMap<String, Entry>,
    /// The directory in which everything lies, with its slash; usually empty.
    prefix: String,
}

impl Index {
    /// Reads all headers of `file`, which has `len` bytes.
    pub(crate) fn read(
        file: File,
        len: u64,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<Self, ArchiveError> {
        let mut scan = Scan {
            file,
            len,
            position: 0,
            last: String::new(),
        };
        let mut headers = Headers::default();
        let mut entries = BTreeMap::new();
        let mut count = 0;
        loop {
            if progress.is_canceled() {
                return Err(ArchiveError::Canceled);
            }
            let head = match scan.next(&mut headers, count == 0)? {
                Step::End => break,
                Step::Extension(extension, size) => {
                    let mut data = vec![0; size as usize];
                    scan.take(&mut data)?;
                    headers
                        .extension(extension, &data)
                        .map_err(|e| scan.damaged(e.0))?;
                    scan.pad(size)?;
                    continue;
                }
                Step::Member(head) => head,
            };
            count += 1;
            if count > limits.members {
                return Err(too_large("the archive", count, limits.members, "members"));
            }
            let size = head.data_size();
            let (name, entry) = member(&head, scan.position, limits)?;
            scan.last.clone_from(&name);
            scan.skip(size)?;
            if !name.is_empty() {
                entries.insert(name, entry);
            }
        }
        let mut index = Self {
            file: scan.file,
            entries,
            prefix: String::new(),
        };
        for name in index.entries.keys() {
            index.resolve(name)?;
        }
        index.prefix = index.common_directory();
        Ok(index)
    }

    /// Where the bytes of `name` are; none if it is absent, a directory, or a link to nothing.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Place>, ArchiveError> {
        match normalized(&self.prefix, name) {
            Ok(path) => self.resolve(&path),
            Err(reason) => Err(unsafe_member(name, reason)),
        }
    }

    /// As [`Index::find`]; an absent one is an error.
    pub(crate) fn require(&self, name: &str) -> Result<Place, ArchiveError> {
        self.find(name)?.ok_or_else(|| {
            Rejection::LayerMissing {
                layer: name.to_owned(),
            }
            .into()
        })
    }

    /// Names of files and links, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let named = self
            .entries
            .iter()
            .filter(|(_, entry)| !matches!(entry, Entry::Directory));
        named.filter_map(|(name, _)| name.strip_prefix(&self.prefix))
    }

    /// Reads a small file whole.
    pub(crate) fn bytes(&self, name: &str, place: Place, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        if place.size > limit {
            return Err(too_large(name, place.size, limit, "bytes"));
        }
        let mut bytes = vec![0; place.size as usize];
        self.file
            .read_exact_at(&mut bytes, place.offset)
            .map_err(ArchiveError::io(format!("reading {name:?}")))?;
        Ok(bytes)
    }

    /// The bytes at a place, from the first one on.
    pub(crate) fn open(&self, place: Place) -> impl Read + '_ {
        PlaceReader {
            file: &self.file,
            position: place.offset,
            end: place.offset + place.size,
        }
    }

    fn resolve(&self, name: &str) -> Result<Option<Place>, ArchiveError> {
        let mut at = name;
        for _ in 0..=MAX_HOPS {
            match self.entries.get(at) {
                None | Some(Entry::Directory) => return Ok(None),
                Some(Entry::File(place)) => return Ok(Some(*place)),
                Some(Entry::Link(target)) => at = target,
            }
        }
        Err(unsafe_member(
            name,
            "its links lead in a circle, or over too many links",
        ))
    }

    /// People pack a directory instead of its contents; then all names begin with the directory's.
    fn common_directory(&self) -> String {
        let mut tops = self.entries.keys().map(|n| n.split('/').next().unwrap_or(n));
        let Some(top) = tops.next() else {
            return String::new();
        };
        let marks = ["manifest.json", "index.json", "repositories"];
        let alone = tops.all(|t| t == top);
        if alone
            && marks
                .iter()
                .any(|m| self.entries.contains_key(&format!("{top}/{m}")))
        {
            format!("{top}/")
        } else {
            String::new()
        }
    }
}

/// Reads on from header to header.
struct Scan {
    file: File,
    len: u64,
    position: u64,
    /// The member read last, for messages.
    last: String,
}

impl Scan {
    fn next(&mut self, headers: &mut Headers, first: bool) -> Result<Step, ArchiveError> {
        let mut block = [0; BLOCK];
        if first && self.len < BLOCK as u64 {
            return Err(Rejection::NotAnArchive {
                reason: format!("it has only {} bytes", self.len),
            }
            .into());
        }
        if self.position == self.len {
            return Err(self.damaged("the end-of-archive marker is missing"));
        }
        self.take(&mut block)?;
        headers.header(&block).map_err(|e| {
            if first {
                let reason = format!("it is not a tar ({})", e.0);
                Rejection::NotAnArchive { reason }.into()
            } else {
                self.damaged(e.0)
            }
        })
    }

    fn take(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        let start = self.position;
        self.skip_exactly(buffer.len() as u64)?;
        self.file
            .read_exact_at(buffer, start)
            .map_err(ArchiveError::io("reading the archive"))
    }

    /// Passes over a member's data and its padding.
    fn skip(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padded = padded(size).ok_or_else(|| self.damaged("a size is too large"))?;
        self.skip_exactly(padded)
    }

    /// Passes over the padding behind `size` bytes already taken.
    fn pad(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padded = padded(size).ok_or_else(|| self.damaged("a size is too large"))?;
        self.skip_exactly(padded - size)
    }

    fn skip_exactly(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        match self.position.checked_add(bytes) {
            Some(end) if end <= self.len => {
                self.position = end;
                Ok(())
            }
            _ => Err(self.damaged("the file ends within it")),
        }
    }

    fn damaged(&self, reason: &str) -> ArchiveError {
        Rejection::Truncated {
            file: self.last.clone(),
            reason: reason.to_owned(),
        }
        .into()
    }
}

/// Checks a member and names it from the root of the archive.
fn member(head: &Head, offset: u64, limits: &Limits) -> Result<(String, Entry), ArchiveError> {
    let shown = || {
        String::from_utf8_lossy(&head.name)
            .chars()
            .take(300)
            .collect::<String>()
    };
    let unsupported = |kind: &str| -> ArchiveError {
        Rejection::UnsupportedMember {
            file: shown(),
            kind: kind.to_owned(),
        }
        .into()
    };
    for path in [&head.name, &head.link] {
        if path.len() as u64 > limits.path_bytes {
            return Err(too_large(
                &shown(),
                path.len() as u64,
                limits.path_bytes,
                "bytes in its path",
            ));
        }
    }
    let utf8 = |path: &[u8]| match std::str::from_utf8(path) {
        Ok(path) => Ok(path.to_owned()),
        Err(_) => Err(unsupported("member with a name that is not UTF-8")),
    };
    let name = normalized("", &utf8(&head.name)?).map_err(|reason| unsafe_member(&shown(), reason))?;
    let entry = match head.kind {
        Kind::File if name.is_empty() => return Err(unsafe_member(&shown(), "it has no name")),
        Kind::File => Entry::File(Place {
            offset,
            size: head.size,
        }),
        Kind::Sparse(_) => return Err(unsupported("sparse file")),
        Kind::Device(kind) => return Err(unsupported(kind)),
        Kind::Unknown => return Err(unsupported("member of unknown kind")),
        // Readers differ in whether data follows, and so in where the next member begins.
        _ if head.size != 0 => return Err(unsupported("link or directory with a size")),
        Kind::Directory => Entry::Directory,
        Kind::Symlink | Kind::Hardlink => {
            let target = utf8(&head.link)?;
            let from = match head.kind {
                Kind::Symlink => name.rsplit_once('/').map_or("", |(directory, _)| directory),
                _ => "",
            };
            let target = target_of(from, &target).map_err(|reason| unsafe_member(&shown(), reason))?;
            Entry::Link(target)
        }
    };
    Ok((name, entry))
}

/// A member's name without `.` and doubled slashes; `..` is refused wherever it stands.
fn normalized(prefix: &str, name: &str) -> Result<String, &'static str> {
    if name.starts_with('/') {
        return Err("its path is absolute");
    }
    let parts = name.split('/').filter(|part| !part.is_empty() && *part != ".");
    let mut path = prefix.to_owned();
    for (n, part) in parts.enumerate() {
        if part == ".." {
            return Err("its path leads upwards");
        }
        if n > 0 {
            path.push('/');
        }
        path.push_str(part);
    }
    Ok(path)
}

/// Where a link in directory `from` leads; `..` may stand in it as long as it stays in the archive.
fn target_of(from: &str, target: &str) -> Result<String, &'static str> {
    if target.starts_with('/') {
        return Err("it links to an absolute path");
    }
    let mut path: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                path.pop().ok_or("it links out of the archive")?;
            }
            part => path.push(part),
        }
    }
    Ok(path.join("/"))
}

pub(crate) fn too_large(file: &str, size: u64, limit: u64, unit: &'static str) -> ArchiveError {
    Rejection::TooLarge {
        file: file.to_owned(),
        size,
        limit,
        unit,
    }
    .into()
}

fn unsafe_member(file: &str, reason: &str) -> ArchiveError {
    Rejection::UnsafeMember {
        file: file.to_owned(),
        reason: reason.to_owned(),
    }
    .into()
}

struct PlaceReader<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for PlaceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let Some(buffer) = buffer.get_mut(..wanted).filter(|b| !b.is_empty()) else {
            return Ok(0);
        };
        let n = self.file.read_at(buffer, self.position)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
