//! Unit-association criteria: what a search within a repository asks for.

use serde_json::{Map, Value};

use super::{
    Filter, SortKey, compare, compiled, fields_of, filters_of, limit_of, number_of, page, project,
    refuse_unknown, sort_of,
};
use crate::ApiError;

/// What a search for units asks for. `unit` parts speak of a unit's fields, `association` parts of its place in
/// the repository.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnitCriteria {
    /// Types wanted; empty means all.
    pub(crate) type_ids: Vec<String>,
    unit_filter: Filter,
    association_filter: Filter,
    unit_sort: Vec<SortKey>,
    association_sort: Vec<SortKey>,
    unit_fields: Option<Vec<String>>,
    association_fields: Option<Vec<String>>,
    limit: Option<usize>,
    skip: usize,
}

const KNOWN: [&str; 7] = [
    "type_ids",
    "filters",
    "sort",
    "fields",
    "limit",
    "skip",
    "remove_duplicates",
];

/// What an association keeps whatever fields are wanted.
const KEPT: [&str; 7] = [
    "_id",
    "id",
    "_ns",
    "repo_id",
    "unit_id",
    "unit_type_id",
    "metadata",
];

impl UnitCriteria {
    /// Reads the object.
    pub(crate) fn parse(map: &Map<String, Value>) -> Result<Self, ApiError> {
        refuse_unknown(map, &KNOWN)?;
        let type_ids = match map.get("type_ids") {
            Some(Value::String(one)) => vec![one.clone()],
            other => fields_of("type_ids", other)?.unwrap_or_default(),
        };
        let filters = halves("filters", map.get("filters"))?;
        let sort = halves("sort", map.get("sort"))?;
        let fields = halves("fields", map.get("fields"))?;
        Ok(Self {
            type_ids,
            unit_filter: compiled("filters.unit", &filters_of("filters.unit", filters.get("unit"))?)?,
            association_filter: compiled(
                "filters.association",
                &filters_of("filters.association", filters.get("association"))?,
            )?,
            unit_sort: sort_of("sort.unit", sort.get("unit"))?,
            association_sort: sort_of("sort.association", sort.get("association"))?,
            unit_fields: fields_of("fields.unit", fields.get("unit"))?,
            association_fields: fields_of("fields.association", fields.get("association"))?,
            limit: limit_of(map)?,
            skip: number_of("skip", map.get("skip"), 0)?.unwrap_or(0),
        })
    }

    /// The associations wanted, in order and with the fields wanted. Without an order of its own a search keeps
    /// that of the documents.
    pub(crate) fn apply(&self, documents: Vec<Value>) -> Vec<Value> {
        let mut wanted: Vec<Value> = documents
            .into_iter()
            .filter(|d| self.association_filter.matches(d) && self.unit_filter.matches(unit(d)))
            .collect();
        wanted.sort_by(|a, b| {
            compare(&self.association_sort, a, b).then_with(|| compare(&self.unit_sort, unit(a), unit(b)))
        });
        page(wanted, self.skip, self.limit)
            .into_iter()
            .map(|d| self.projected(d))
            .collect()
    }

    fn projected(&self, mut document: Value) -> Value {
        if let Some(fields) = &self.unit_fields {
            let metadata = project(unit(&document), fields, &["_id", "_ns", "_content_type_id"]);
            document["metadata"] = metadata;
        }
        match &self.association_fields {
            Some(fields) => project(&document, fields, &KEPT),
            None => document,
        }
    }
}

fn unit(document: &Value) -> &Value {
    document.get("metadata").unwrap_or(&Value::Null)
}

/// An object of the two halves `unit` and `association`, either of which may be absent.
fn halves(name: &str, value: Option<&Value>) -> Result<Map<String, Value>, ApiError> {
    let map = filters_of(name, value)?;
    match map.keys().find(|k| *k != "unit" && *k != "association") {
        Some(other) => Err(ApiError::invalid(
            name,
            format!("{name} has {other:?}; it has \"unit\" and \"association\""),
        )),
        None => Ok(map),
    }
}
