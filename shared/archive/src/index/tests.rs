//! Random, damaged and unusual archives.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::{collections::BTreeSet, io::Write};

use proptest::prelude::*;
use tar::{Archive, EntryType, Header};

use super::*;
use crate::NoProgress;

fn read(bytes: &[u8]) -> Result<Index, ArchiveError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Index::read(file, bytes.len() as u64, &Limits::default(), &NoProgress)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
}

fn content(index: &Index, place: Place) -> Vec<u8> {
    let mut bytes = Vec::new();
    index.open(place).read_to_end(&mut bytes).unwrap();
    bytes
}

/// A member of a random archive: kind, name, target.
fn members() -> impl Strategy<Value = Vec<(u8, String, String)>> {
    let name = proptest::collection::vec("[ab]{1,2}", 1..4).prop_map(|parts| parts.join("/"));
    let target = proptest::collection::vec(prop_oneof![3 => "[ab]{1,2}", 2 => Just("..".to_owned())], 1..5)
        .prop_map(|parts| parts.join("/"));
    proptest::collection::vec((0_u8..4, name, target), 1..24)
}

proptest! {
    #[test]
    fn links_lead_to_contents_of_the_archive_or_the_archive_is_refused(members in members()) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut contents = BTreeSet::new();
        for (n, (kind, name, target)) in members.iter().enumerate() {
            match kind {
                0 | 1 => {
                    // Each content tells whose it is, and where it ends.
                    let text = format!("<{n}:{}>", name.repeat(n * 20)).into_bytes();
                    append(&mut tar, EntryType::Regular, name, "", &text);
                    contents.insert(text);
                }
                2 => append(&mut tar, EntryType::Symlink, name, target, &[]),
                _ => append(&mut tar, EntryType::Link, name, target, &[]),
            }
        }
        match read(&tar.into_inner().unwrap()) {
            Ok(index) => {
                for name in index.entries.keys() {
                    if let Some(place) = index.resolve(name).unwrap() {
                        prop_assert!(contents.contains(&content(&index, place)));
                    }
                }
            }
            Err(ArchiveError::Rejected(rejection)) => {
                let unsafe_member = matches!(*rejection, Rejection::UnsafeMember { .. });
                prop_assert!(unsafe_member, "{rejection}");
                let may_leave = members.iter().any(|(kind, ..)| *kind > 1);
                prop_assert!(may_leave, "refused without a link: {rejection}");
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    /// Damage of any kind ends in an error or in what the `tar` crate reads; never in a panic.
    #[test]
    fn a_damaged_archive_is_read_as_the_tar_crate_reads_it_or_refused(
        damage in proptest::collection::vec((0_usize..6000, any::<u8>()), 0..4),
        cut in prop_oneof![1 => 0_usize..12_000, 2 => Just(usize::MAX)],
        fix in any::<bool>(),
    ) {
        let mut bytes = mixed();
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
            let header = at - at % BLOCK;
            if fix {
                // Damage that a checksum does not reveal.
                let block: &mut [u8] = &mut bytes[header..header + BLOCK];
                let mut fixed = Header::from_byte_slice(block).clone();
                if fixed.as_gnu().is_some() || fixed.as_ustar().is_some() {
                    fixed.set_cksum();
                    block.copy_from_slice(fixed.as_bytes());
                }
            }
        }
        bytes.truncate(cut.max(BLOCK));
        if let Ok(index) = read(&bytes) {
            let mut expected = BTreeMap::new();
            for entry in Archive::new(&bytes[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                if entry.header().entry_type() == EntryType::XGlobalHeader {
                    continue;
                }
                let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                let name = normalized("", &name).unwrap();
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap();
                match entry.header().entry_type() {
                    EntryType::Regular | EntryType::Continuous if !entry.path_bytes().ends_with(b"/") => {
                        expected.insert(name, Some(data));
                    }
                    _ => drop(expected.insert(name, None)),
                }
            }
            for (name, data) in expected.iter().filter(|(name, _)| !name.is_empty()) {
                match (index.entries.get(name), data) {
                    (Some(Entry::File(place)), Some(data)) => {
                        prop_assert_eq!(&content(&index, *place), data, "{}", name);
                    }
                    (Some(Entry::Directory | Entry::Link(_)), None) => {}
                    (got, _) => prop_assert!(false, "{name}: {got:?}"),
                }
            }
            prop_assert_eq!(index.entries.len(), expected.keys().filter(|n| !n.is_empty()).count());
        }
    }
}

/// Every way of writing a member that the reader knows.
fn mixed() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, EntryType::Directory, "dir/", "", &[]);
    append(&mut tar, EntryType::Regular, "dir/file", "", &[1; 700]);
    append(&mut tar, EntryType::Symlink, "dir/link", "file", &[]);
    append(
        &mut tar,
        EntryType::XGlobalHeader,
        "pax_global_header",
        "",
        b"12 comment=\n",
    );
    let mut header = Header::new_gnu();
    header.set_size(3);
    tar.append_data(&mut header, "long/".repeat(50) + "name", &b"abc"[..])
        .unwrap();
    // As POSIX.1-2001 writes sizes that don't fit: the record overrides the header.
    let records = [("path", &b"pax/name"[..]), ("size", b"5"), ("mtime", b"1.5")];
    tar.append_pax_extensions(records).unwrap();
    append(&mut tar, EntryType::Regular, "short", "", b"12345");
    append(&mut tar, EntryType::Link, "hard", "dir/file", &[]);
    tar.into_inner().unwrap()
}

#[test]
fn every_way_of_writing_a_member_is_read() {
    let index = read(&mixed()).unwrap();
    let text = |name: &str| content(&index, index.require(name).unwrap());
    assert_eq!(text("dir/file"), [1; 700]);
    assert_eq!(text("dir/link"), [1; 700]);
    assert_eq!(text("hard"), [1; 700]);
    assert_eq!(text(&("long/".repeat(50) + "name")), b"abc");
    assert_eq!(text("pax/name"), b"12345");
    assert!(index.find("short").unwrap().is_none());
    assert!(index.find("dir").unwrap().is_none());
    assert_eq!(index.names().count(), 5);
}

#[test]
fn a_pax_size_overrides_the_headers() {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("size", &b"3"[..])]).unwrap();
    append(&mut tar, EntryType::Regular, "a", "", b"abcdef");
    append(&mut tar, EntryType::Regular, "b", "", b"b");
    let index = read(&tar.into_inner().unwrap()).unwrap();
    assert_eq!(content(&index, index.require("a").unwrap()), b"abc");
    assert_eq!(content(&index, index.require("b").unwrap()), b"b");
}

#[test]
fn a_member_described_in_two_ways_is_refused() {
    let twice = |records: &[(&str, &[u8])], long: bool| {
        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, EntryType::Regular, "first", "", b"");
        for record in records {
            if long {
                append(&mut tar, EntryType::GNULongName, "././@LongLink", "", b"long\0");
            }
            tar.append_pax_extensions([*record]).unwrap();
        }
        append(&mut tar, EntryType::Regular, "a", "", b"x");
        read(&tar.into_inner().unwrap())
    };
    assert!(twice(&[("path", b"p")], false).is_ok());
    assert!(twice(&[("path", b"p")], true).is_err());
    assert!(twice(&[("size", b"1"), ("size", b"1")], false).is_err());
    assert!(twice(&[("size", b"-1")], false).is_err());
    assert!(twice(&[("size", b"18446744073709551615")], false).is_err());
    assert!(twice(&[("path", b"../x")], false).is_err());
}

#[test]
fn names_that_are_written_differently_are_the_same_member() {
    for (name, expected) in [("./a//b/.", "a/b"), ("a/", "a"), (".", ""), ("a/./b", "a/b")] {
        assert_eq!(normalized("", name), Ok(expected.to_owned()));
    }
    assert_eq!(target_of("a/b", "../c/./d"), Ok("a/c/d".to_owned()));
    assert!(target_of("a", "../../c").is_err());
}
