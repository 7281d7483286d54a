//! What people read: title boxes and aligned documents; what programs read: one JSON document.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::io::Io;

/// Width of a title box.
const WIDTH: usize = 72;

/// Where a command's words go.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    pub(crate) io: Io,
    /// One JSON document on stdout, nothing else there.
    pub(crate) json: bool,
    /// Escapes for green and red.
    pub(crate) color: bool,
}

impl Screen {
    /// Whether bars move.
    pub(crate) fn animated(&self) -> bool {
        self.io.terminal && !self.json
    }

    /// A line for people.
    pub(crate) fn line(&self, text: &str) {
        if !self.json {
            self.io.write_out(&format!("{text}\n"));
        }
    }

    /// An empty line.
    pub(crate) fn blank(&self) {
        self.line("");
    }

    /// A title in its box.
    pub(crate) fn title(&self, text: &str) {
        self.line(&title(text));
    }

    /// A green line.
    pub(crate) fn success(&self, text: &str) {
        self.line(&self.painted("32", text));
    }

    /// A red line.
    pub(crate) fn failure(&self, text: &str) {
        self.line(&self.painted("31", text));
    }

    /// Something to know that is no result: a line on stderr, in every mode.
    pub(crate) fn warning(&self, text: &str) {
        self.io.write_err(&format!("{}\n", self.painted("33", text)));
    }

    /// The end of a command that didn't work.
    pub(crate) fn error(&self, text: &str) {
        self.io.write_err(&format!("{}\n", self.painted("31", text)));
    }

    /// A document, an empty line behind it.
    pub(crate) fn document(&self, document: &Value, order: &[&str], hidden: Hidden) {
        self.line(&render(document, order, hidden));
    }

    /// The result for programs.
    pub(crate) fn result(&self, document: &Value) {
        if self.json {
            // A JSON value always has a text.
            let text = serde_json::to_string_pretty(document).unwrap_or_default();
            self.io.write_out(&format!("{text}\n"));
        }
    }

    fn painted(&self, color: &str, text: &str) -> String {
        if self.color && self.io.terminal {
            format!("\u{1b}[{color}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// What happens to keys that begin with an underscore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hidden {
    /// They are left out.
    Omit,
    /// They are shown.
    Show,
}

/// The box: a rule, the title in the middle, a rule, an empty line.
pub(crate) fn title(text: &str) -> String {
    let rule = format!("+{}+", "-".repeat(WIDTH - 2));
    let indent = WIDTH.saturating_sub(text.chars().count()) / 2;
    format!("{rule}\n{:indent$}{text}\n{rule}\n", "")
}

/// `content_unit_counts` as people write it; `ca`, `ssl` and `url` are abbreviations.
pub(crate) fn heading(key: &str) -> String {
    key.split('_')
        .filter(|word| !word.is_empty())
        .map(|word| match word {
            "ca" | "ssl" | "url" => word.to_uppercase(),
            _ => {
                let mut chars = word.chars();
                chars
                    .next()
                    .map(|first| first.to_uppercase().chain(chars).collect())
                    .unwrap_or_default()
            }
        })
        .collect::<Vec<String>>()
        .join(" ")
}

/// A document with its values in one column; `order` first, the other keys by the alphabet.
pub(crate) fn render(document: &Value, order: &[&str], hidden: Hidden) -> String {
    let mut out = String::new();
    match document {
        Value::Object(map) => object(map, order, hidden, 0, &mut out),
        other => {
            let _ = writeln!(out, "{}", scalar(other));
        }
    }
    out
}

fn object(map: &Map<String, Value>, order: &[&str], hidden: Hidden, indent: usize, out: &mut String) {
    let shown = |key: &&str| hidden == Hidden::Show || !key.starts_with('_');
    let first = order.iter().copied().filter(|key| map.contains_key(*key));
    let rest = map.keys().map(String::as_str).filter(|key| !order.contains(key));
    let keys: Vec<&str> = first.chain(rest).filter(shown).collect();
    // `_id` and `id` must stay apart when both are shown.
    let name = |key: &str| {
        if key.starts_with('_') {
            printable(key)
        } else {
            printable(&heading(key))
        }
    };
    let width = keys
        .iter()
        .map(|key| name(key).chars().count())
        .max()
        .unwrap_or(0)
        + 2;
    for key in keys {
        let label = format!("{}:", name(key));
        let Some(value) = map.get(key) else { continue };
        let pad = " ".repeat(indent);
        match value {
            Value::Object(inner) => {
                let _ = writeln!(out, "{pad}{label}");
                object(inner, &[], hidden, indent + 2, out);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let _ = writeln!(out, "{pad}{label}");
                for (position, item) in items.iter().enumerate() {
                    if position > 0 {
                        out.push('\n');
                    }
                    match item {
                        Value::Object(inner) => object(inner, &["id"], hidden, indent + 2, out),
                        other => {
                            let _ = writeln!(out, "{pad}  {}", scalar(other));
                        }
                    }
                }
            }
            other => {
                let text = scalar(other);
                let line = format!("{pad}{label:<width$}{text}");
                // Further lines of a value stand under its first.
                let line = line.replace('\n', &format!("\n{}", " ".repeat(indent + width)));
                let _ = writeln!(out, "{}", line.trim_end());
            }
        }
    }
}

/// One value: Python's words for the constants, as every script that reads pulp-admin expects.
fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Text from the server must not drive the terminal: control characters other than a line's end go.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || *c == '\n' || *c == '\t')
        .collect()
}

/// Some keys of a document, those that it has.
pub(crate) fn picked(document: &Value, keys: &[&str]) -> Value {
    let mut out = Map::new();
    for key in keys {
        if let Some(value) = document.get(*key) {
            out.insert((*key).to_owned(), value.clone());
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_title_stands_in_the_middle_of_its_box() {
        let rule = "+----------------------------------------------------------------------+";
        assert_eq!(
            title("Docker Repositories"),
            format!("{rule}\n                          Docker Repositories\n{rule}\n")
        );
        let long = "x".repeat(100);
        assert!(
            title(&long).contains(&format!("\n{long}\n")),
            "a long one is not cut"
        );
    }

    #[test]
    fn keys_are_capitalised_word_by_word() {
        assert_eq!(heading("content_unit_counts"), "Content Unit Counts");
        assert_eq!(heading("ssl_ca_cert"), "SSL CA Cert");
        assert_eq!(heading("redirect-url"), "Redirect-url");
        assert_eq!(heading("url"), "URL");
        assert_eq!(heading("docker_manifest_list"), "Docker Manifest List");
    }

    #[test]
    fn values_stand_in_one_column_and_nested_documents_are_indented() {
        let document = json!({
            "id": "busybox", "display_name": "busybox", "description": null,
            "content_unit_counts": {"docker_blob": 2, "docker_manifest": 1},
            "_href": "/pulp/api/v2/repositories/busybox/",
        });
        let order = ["id", "display_name", "description", "content_unit_counts"];
        assert_eq!(
            render(&document, &order, Hidden::Omit),
            "Id:                  busybox\n\
             Display Name:        busybox\n\
             Description:         None\n\
             Content Unit Counts:\n  \
               Docker Blob:     2\n  \
               Docker Manifest: 1\n"
        );
    }

    #[test]
    fn hidden_keys_are_shown_on_demand() {
        let document = json!({"_id": "scheduler@h", "id": "x"});
        assert_eq!(render(&document, &[], Hidden::Show), "_id: scheduler@h\nId:  x\n");
        assert_eq!(render(&document, &[], Hidden::Omit), "Id: x\n");
    }

    #[test]
    fn lists_of_scalars_are_joined_and_lists_of_documents_are_blocks() {
        let document = json!({"tags": ["a", "b"], "empty": [], "on": true,
            "distributors": [{"id": "d1", "auto_publish": true}, {"id": "d2", "auto_publish": false}]});
        assert_eq!(
            render(&document, &["tags"], Hidden::Omit),
            "Tags:         a, b\n\
             Distributors:\n  \
               Id:           d1\n  \
               Auto Publish: True\n\
             \n  \
               Id:           d2\n  \
               Auto Publish: False\n\
             Empty:\n\
             On:           True\n"
        );
    }

    #[test]
    fn text_of_the_server_can_not_drive_the_terminal() {
        assert_eq!(
            render(&json!({"a": "x\u{1b}[31my\nz"}), &[], Hidden::Omit),
            "A: x[31my\n   z\n"
        );
    }
}
