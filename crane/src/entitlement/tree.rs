//! The tree of content paths in version 3 certificates.
//!
//! It is two parts, one behind the other: words, deflated and parted by NUL; then the number of nodes and a stream of
//! bits in which each node is a row of pairs of word and node, ended by the empty word. Words and nodes are written
//! in Huffman codes, whose weights are their places: 1, 2, 3 and so on.

use std::{
    collections::{BTreeSet, BinaryHeap},
    io::Read as _,
};

use flate2::{Decompress, FlushDecompress, Status};

use super::fits;

/// Words of a certificate inflate to no more than this; one that does is none.
const WORDS_LIMIT: usize = 1 << 20;

/// The paths. Node 0 is the root; a node without children ends a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree(Vec<Vec<(String, usize)>>);

impl Tree {
    /// Reads a tree; none if it is damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = inflate(bytes)?;
        let words: Vec<String> = String::from_utf8(words)
            .ok()?
            .split('\0')
            .map(ToOwned::to_owned)
            .collect();
        let (count, bits) = node_count(rest)?;
        // Each node takes a bit at least, for its end.
        if count == 0 || count > bits.len().checked_mul(8)? {
            return None;
        }
        let (word_codes, node_codes) = (Codes::new(words.len())?, Codes::new(count.checked_sub(1)?));
        let mut bits = Bits { bytes: bits, at: 0 };
        let mut nodes = Vec::with_capacity(count);
        for _ in 0..count {
            let mut children = Vec::new();
            loop {
                let word = words.get(word_codes.read(&mut bits)?)?;
                if word.is_empty() {
                    break;
                }
                // Codes are those of the nodes without the root, so place 0 is node 1.
                let node = node_codes.as_ref()?.read(&mut bits)? + 1;
                children.push((word.clone(), node));
            }
            nodes.push(children);
        }
        Some(Self(nodes))
    }

    /// Whether a path leads to an end, however it goes on behind that.
    pub(super) fn permits(&self, path: &[String]) -> bool {
        let mut reached = BTreeSet::from([0]);
        for part in path {
            let children = reached.iter().filter_map(|node| self.0.get(*node)).flatten();
            reached = children
                .filter(|(word, _)| fits(word, part))
                .map(|(_, node)| *node)
                .collect();
            if reached
                .iter()
                .any(|node| self.0.get(*node).is_some_and(Vec::is_empty))
            {
                return true;
            }
        }
        false
    }
}

/// The deflated words, and what is behind them.
fn inflate(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut zlib = Decompress::new(true);
    let mut words = Vec::with_capacity(4096);
    loop {
        let read = usize::try_from(zlib.total_in()).ok()?;
        let before = (zlib.total_in(), zlib.total_out());
        let status = zlib
            .decompress_vec(bytes.get(read..)?, &mut words, FlushDecompress::None)
            .ok()?;
        if status == Status::StreamEnd {
            let read = usize::try_from(zlib.total_in()).ok()?;
            return Some((words, bytes.get(read..)?));
        }
        let full = words.len() == words.capacity();
        if words.len() > WORDS_LIMIT || (!full && before == (zlib.total_in(), zlib.total_out())) {
            return None;
        }
        if full {
            words.reserve(words.len().max(1));
        }
    }
}

/// One byte below 128, else the number of bytes that follow, as in DER.
fn node_count(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first < 128 {
        return Some((usize::from(*first), rest));
    }
    let length = usize::from(first & 0x7f);
    let mut count = [0; 4];
    let (mut number, rest) = (rest.get(..length)?, rest.get(length..)?);
    number
        .read_exact(count.get_mut(4_usize.checked_sub(length)?..)?)
        .ok()?;
    Some((usize::try_from(u32::from_be_bytes(count)).ok()?, rest))
}

/// Bits of bytes, the highest first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn next(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte & (0x80 >> (self.at % 8)) != 0;
        self.at += 1;
        Some(bit)
    }
}

/// A Huffman code over places 0, 1, 2, … of weights 1, 2, 3, …
struct Codes {
    /// Children by 0 and 1 of what isn't a place.
    joints: Vec<[Step; 2]>,
    root: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Place(usize),
    Joint(usize),
}

impl Codes {
    /// None for no places. Of equal weights the one that was there first is taken first.
    fn new(places: usize) -> Option<Self> {
        use std::cmp::Reverse;

        let weighted = (0..places).map(|place| Reverse((place as u64 + 1, place, Step::Place(place))));
        let mut heap: BinaryHeap<Reverse<(u64, usize, Step)>> = weighted.collect();
        let mut joints = Vec::new();
        loop {
            let Reverse((left_weight, _, left)) = heap.pop()?;
            let Some(Reverse((right_weight, _, right))) = heap.pop() else {
                return Some(Self { joints, root: left });
            };
            let order = places + joints.len();
            heap.push(Reverse((
                left_weight + right_weight,
                order,
                Step::Joint(joints.len()),
            )));
            joints.push([left, right]);
        }
    }

    /// The place that the next bits stand for. A code over one place has no bits.
    fn read(&self, bits: &mut Bits<'_>) -> Option<usize> {
        let mut step = self.root;
        loop {
            match step {
                Step::Place(place) => return Some(place),
                Step::Joint(joint) => step = *self.joints.get(joint)?.get(usize::from(bits.next()?))?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use std::{collections::BTreeMap, io::Write as _};

    use super::*;

    /// The codes themselves, to write with.
    fn codes(places: usize) -> Vec<String> {
        fn walk(codes: &Codes, step: Step, code: &str, out: &mut BTreeMap<usize, String>) {
            match step {
                Step::Place(place) => {
                    out.insert(place, code.to_owned());
                }
                Step::Joint(joint) => {
                    walk(codes, codes.joints[joint][0], &format!("{code}0"), out);
                    walk(codes, codes.joints[joint][1], &format!("{code}1"), out);
                }
            }
        }
        let codes = Codes::new(places).unwrap();
        let mut out = BTreeMap::new();
        walk(&codes, codes.root, "", &mut out);
        out.into_values().collect()
    }

    /// Writes a tree of these paths as a certificate authority does.
    fn encode(paths: &[&str]) -> Vec<u8> {
        let mut nodes: Vec<Vec<(String, usize)>> = vec![Vec::new()];
        let mut words: Vec<String> = Vec::new();
        for path in paths {
            let mut node = 0;
            for word in path.split('/').filter(|w| !w.is_empty()) {
                if !words.contains(&word.to_owned()) {
                    words.push(word.to_owned());
                }
                let known = nodes[node].iter().find(|(w, _)| w == word).map(|(_, n)| *n);
                node = known.unwrap_or_else(|| {
                    let new = nodes.len();
                    nodes.push(Vec::new());
                    nodes[node].push((word.to_owned(), new));
                    new
                });
            }
        }
        words.push(String::new());
        let (word_codes, node_codes) = (codes(words.len()), codes(nodes.len() - 1));
        let word_code = |word: &str| word_codes[words.iter().position(|w| w == word).unwrap()].clone();
        let mut bits = String::new();
        for children in &nodes {
            for (word, node) in children {
                bits += &(word_code(word) + &node_codes[node - 1]);
            }
            bits += &word_code("");
        }
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        zlib.write_all(words.join("\0").as_bytes()).unwrap();
        let mut bytes = zlib.finish().unwrap();
        match u8::try_from(nodes.len()) {
            Ok(count) if count < 128 => bytes.push(count),
            _ => bytes.extend([0x82, (nodes.len() >> 8) as u8, nodes.len() as u8]),
        }
        for byte in bits.as_bytes().chunks(8) {
            let byte = format!("{:0<8}", std::str::from_utf8(byte).unwrap());
            bytes.push(u8::from_str_radix(&byte, 2).unwrap());
        }
        bytes
    }

    fn permits(tree: &Tree, path: &str) -> bool {
        let parts: Vec<String> = path
            .split('/')
            .filter(|p| !p.is_empty())
            .map(ToOwned::to_owned)
            .collect();
        tree.permits(&parts)
    }

    #[test]
    fn codes_are_those_of_the_worked_example() {
        assert_eq!(codes(5), ["010", "011", "00", "10", "11"]);
        assert_eq!(codes(3), ["10", "11", "0"]);
        assert_eq!(codes(1), [""]);
        assert!(Codes::new(0).is_none());
    }

    #[test]
    fn a_path_is_permitted_from_its_end_on_by_whole_parts() {
        let tree = Tree::decode(&encode(&[
            "/foo/path",
            "/content/$releasever/os",
            "/content/7/debug",
        ]))
        .unwrap();
        for (path, permitted) in [
            ("/foo/path", true),
            ("/foo/path/x/y", true),
            ("/foo/pathology", false),
            ("/foo", false),
            ("/content/7/os", true),
            ("/content/7/debug", true),
            ("/content/8/debug", false),
            ("/content/8/os/x", true),
            ("/listing", false),
            ("/foo/listing", false),
            ("/", false),
        ] {
            assert_eq!(permits(&tree, path), permitted, "{path}");
        }
    }

    #[test]
    fn trees_of_one_node_and_of_many_are_read() {
        let tree = Tree::decode(&encode(&["/content"])).unwrap();
        assert!(permits(&tree, "/content/x") && !permits(&tree, "/other"));
        let paths: Vec<String> = (0..300).map(|n| format!("/content/{}/p{n}", n % 7)).collect();
        let tree = Tree::decode(&encode(&paths.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
        for n in 0..300 {
            assert!(permits(&tree, &format!("/content/{}/p{n}/os", n % 7)));
            assert!(!permits(&tree, &format!("/content/{}/p{n}", (n + 1) % 7)));
        }
    }

    #[test]
    fn damage_permits_nothing_and_breaks_nothing() {
        let good = encode(&["/foo/path", "/content/$releasever/os"]);
        for length in 0..good.len() {
            if let Some(tree) = Tree::decode(&good[..length]) {
                assert!(!permits(&tree, "/other"));
            }
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                let _ = Tree::decode(&bytes).map(|tree| permits(&tree, "/content/7/os"));
            }
        }
        // A root without children is an entitlement to nothing, not to everything.
        let mut empty = encode(&["/a"]);
        empty.truncate(empty.len() - 2);
        assert!(Tree::decode(&empty).is_none_or(|tree| !permits(&tree, "/a")));
    }
}
