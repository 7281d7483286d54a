//! Reading a JSON object's keys into types; all faults are gathered and told at once.

use serde_json::{Map, Value};

use crate::{ApiError, body::type_name};

/// A reader over an object. Read everything, then [`Fields::finish`].
pub(crate) struct Fields {
    map: Map<String, Value>,
    missing: Vec<String>,
    invalid: Vec<(String, String)>,
}

impl Fields {
    pub(crate) const fn new(map: Map<String, Value>) -> Self {
        Self {
            map,
            missing: Vec::new(),
            invalid: Vec::new(),
        }
    }

    /// A value that is there and not null.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    fn wrong(&mut self, name: &str, expected: &str, found: &Value) {
        let reason = format!("{name} is a {}; give {expected}", type_name(found));
        self.invalid.push((name.to_owned(), reason));
    }

    /// Notes a value that was read but is not valid.
    pub(crate) fn refuse(&mut self, name: &str, reason: impl Into<String>) {
        self.invalid.push((name.to_owned(), reason.into()));
    }

    /// Notes that a name is absent.
    pub(crate) fn lacks(&mut self, name: &str) {
        self.missing.push(name.to_owned());
    }

    /// Whether the key is there, even as null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Whether the key is there and not null.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|v| !v.is_null())
    }

    /// A whole number above 0.
    pub(crate) fn positive(&mut self, name: &str) -> Option<i64> {
        let value = self.take(name)?;
        let number = value.as_i64().filter(|n| *n > 0);
        if number.is_none() {
            self.refuse(name, format!("{name} is {value}; give a whole number above 0"));
        }
        number
    }

    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => {
                self.wrong(name, "a string", &other);
                None
            }
        }
    }

    pub(crate) fn required_text(&mut self, name: &str) -> String {
        let there = self.map.get(name).is_some_and(|v| !v.is_null());
        if !there {
            self.lacks(name);
        }
        self.text(name).unwrap_or_default()
    }

    /// A name of its own grammar.
    pub(crate) fn parsed<T>(&mut self, name: &str) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.text(name)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(e) => {
                self.refuse(name, format!("{name}: {e}"));
                None
            }
        }
    }

    /// A name of its own grammar that must be there.
    pub(crate) fn required_parsed<T>(&mut self, name: &str) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        if self.map.get(name).is_none_or(Value::is_null) {
            self.lacks(name);
        }
        self.parsed(name)
    }

    pub(crate) fn object(&mut self, name: &str) -> Option<Map<String, Value>> {
        match self.take(name)? {
            Value::Object(map) => Some(map),
            other => {
                self.wrong(name, "an object", &other);
                None
            }
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Option<Vec<Value>> {
        match self.take(name)? {
            Value::Array(list) => Some(list),
            other => {
                self.wrong(name, "an array", &other);
                None
            }
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(b) => Some(b),
            other => {
                self.wrong(name, "true or false", &other);
                None
            }
        }
    }

    /// Ends with the faults, if there are any. Keys that nobody read are passed over.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        if !self.missing.is_empty() {
            return Err(ApiError::Missing(self.missing));
        }
        if self.invalid.is_empty() {
            return Ok(());
        }
        let (properties, reasons): (Vec<_>, Vec<_>) = self.invalid.into_iter().unzip();
        Err(ApiError::Invalid {
            properties,
            reason: reasons.join("; "),
        })
    }

    /// Ends as [`Fields::finish`], and refuses keys that nobody read.
    pub(crate) fn finish_strict(self) -> Result<(), ApiError> {
        let unread: Vec<String> = self.map.keys().cloned().collect();
        self.finish()?;
        if unread.is_empty() {
            Ok(())
        } else {
            Err(ApiError::Unsupported(unread))
        }
    }
}
