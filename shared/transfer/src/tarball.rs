//! The bytes of a tar around its members' content; pure. The same content gives the same bytes.

use tar::{EntryType, Header};

/// A tar consists of blocks of this many bytes.
const BLOCK: u64 = 512;
/// GNU tar and its kin write tars in multiples of this.
const RECORD: u64 = 20 * BLOCK;
/// Longest path that fits into a header.
const PATH: usize = 100;

/// What stands before the content of a file.
pub(crate) fn before(path: &str, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if path.len() > PATH {
        // GNU's way for long names: a member before it that holds the name.
        let name = [path.as_bytes(), b"\0"].concat();
        bytes
            .extend_from_slice(header("././@LongLink", EntryType::GNULongName, name.len() as u64).as_bytes());
        bytes.extend_from_slice(&name);
        bytes.resize(bytes.len() + after(name.len() as u64), 0);
    }
    let shown = path.get(..PATH).unwrap_or(path);
    bytes.extend_from_slice(header(shown, EntryType::Regular, size).as_bytes());
    bytes
}

/// How many zeros stand behind the content of a file.
pub(crate) fn after(size: u64) -> usize {
    (size.next_multiple_of(BLOCK) - size) as usize
}

/// How many zeros end a tar that has `size` bytes so far.
pub(crate) fn end(size: u64) -> usize {
    ((size + 2 * BLOCK).next_multiple_of(RECORD) - size) as usize
}

fn header(path: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    if let Some(gnu) = header.as_gnu_mut() {
        for (to, from) in gnu.name.iter_mut().zip(path.bytes()) {
            *to = from;
        }
    }
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    header
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn other_readers_find_what_was_written(
            files in proptest::collection::vec(("[a-z]{1,60}/[a-z]{1,120}", proptest::collection::vec(any::<u8>(), 0..1500)), 0..8)
        ) {
            let mut tar = Vec::new();
            for (path, content) in &files {
                tar.extend(before(path, content.len() as u64));
                tar.extend(content);
                tar.resize(tar.len() + after(content.len() as u64), 0);
            }
            tar.resize(tar.len() + end(tar.len() as u64), 0);
            prop_assert_eq!(tar.len() as u64 % RECORD, 0);
            let mut archive = tar::Archive::new(&tar[..]);
            let mut read = Vec::new();
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                read.push((entry.path().unwrap().display().to_string(), content));
            }
            prop_assert_eq!(read, files);
        }
    }
}
