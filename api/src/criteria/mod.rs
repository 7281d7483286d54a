//! Search criteria: filter, sort, skip, limit and fields, decided over the JSON documents that go on the wire.
//! Pure.
//!
//! Source: Pulp 2, `db/model/criteria.py`; keys, defaults and refusals are its own.

mod filter;
mod units;

use std::cmp::Ordering;

use serde_json::{Map, Value};

pub(crate) use filter::Filter;
pub(crate) use units::UnitCriteria;

use crate::{ApiError, query::Query};

/// What a search asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Criteria {
    /// The filter as it was sent, for those that can pass a part of it to the database.
    pub(crate) filters: Map<String, Value>,
    pub(crate) filter: Filter,
    pub(crate) sort: Vec<SortKey>,
    pub(crate) limit: Option<usize>,
    pub(crate) skip: usize,
    pub(crate) fields: Option<Vec<String>>,
}

/// One key of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SortKey {
    path: Vec<String>,
    descending: bool,
}

impl Criteria {
    /// Reads the `criteria` of a POST.
    pub(crate) fn from_body(body: &Map<String, Value>) -> Result<Self, ApiError> {
        match body.get("criteria") {
            Some(Value::Object(map)) => Self::parse(map),
            None | Some(Value::Null) => Err(ApiError::Missing(vec!["criteria".to_owned()])),
            Some(_) => Err(ApiError::invalid("criteria", "criteria must be an object")),
        }
    }

    /// Reads the query of a GET: `filters` and `sort` as JSON, `field` as often as wanted, `limit`, `skip`.
    /// `options` are names that the path itself reads.
    pub(crate) fn from_query(query: &Query, options: &[&str]) -> Result<Self, ApiError> {
        let known = ["filters", "sort", "limit", "skip", "field", "fields"];
        let unknown: Vec<String> = query
            .names()
            .filter(|n| !known.contains(n) && !options.contains(n))
            .map(ToOwned::to_owned)
            .collect();
        if !unknown.is_empty() {
            return Err(not_known(unknown, &known));
        }
        let mut map = Map::new();
        for name in ["filters", "sort"] {
            if let Some(text) = query.first(name) {
                let value = serde_json::from_str(text)
                    .map_err(|e| ApiError::invalid(name, format!("{name} is not valid JSON: {e}")))?;
                map.insert(name.to_owned(), value);
            }
        }
        for name in ["limit", "skip"] {
            if let Some(number) = query.number(name)? {
                map.insert(name.to_owned(), number.into());
            }
        }
        let fields: Vec<Value> = query
            .all("field")
            .chain(query.all("fields"))
            .map(Value::from)
            .collect();
        if !fields.is_empty() {
            map.insert("fields".to_owned(), fields.into());
        }
        Self::parse(&map)
    }

    /// Reads the object itself.
    pub(crate) fn parse(map: &Map<String, Value>) -> Result<Self, ApiError> {
        let known = ["filters", "sort", "limit", "skip", "fields"];
        refuse_unknown(map, &known)?;
        let filters = filters_of("filters", map.get("filters"))?;
        Ok(Self {
            filter: compiled("filters", &filters)?,
            filters,
            sort: sort_of("sort", map.get("sort"))?,
            limit: limit_of(map)?,
            skip: number_of("skip", map.get("skip"), 0)?.unwrap_or(0),
            fields: fields_of("fields", map.get("fields"))?,
        })
    }

    /// The documents wanted, in order. Fields are left to [`Criteria::project`], since a sort may need others.
    pub(crate) fn apply(&self, documents: Vec<Value>) -> Vec<Value> {
        let mut wanted: Vec<Value> = documents.into_iter().filter(|d| self.filter.matches(d)).collect();
        wanted.sort_by(|a, b| compare(&self.sort, a, b));
        page(wanted, self.skip, self.limit)
    }

    /// A document reduced to the fields wanted and to those of `always`.
    pub(crate) fn project(&self, document: Value, always: &[&str]) -> Value {
        match &self.fields {
            Some(fields) => project(&document, fields, always),
            None => document,
        }
    }
}

/// Leaves out the first `skip`, and all after the next `limit`.
fn page<T>(documents: Vec<T>, skip: usize, limit: Option<usize>) -> Vec<T> {
    documents
        .into_iter()
        .skip(skip)
        .take(limit.unwrap_or(usize::MAX))
        .collect()
}

/// The order of two documents; equal ones stay as they came.
fn compare(sort: &[SortKey], a: &Value, b: &Value) -> Ordering {
    for key in sort {
        // What is absent sorts as null, before everything else.
        let value = |d| {
            filter::values_at(d, &key.path)
                .first()
                .map_or(Value::Null, |v| (*v).clone())
        };
        let order = filter::order(&value(a), &value(b));
        let order = if key.descending { order.reverse() } else { order };
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

fn project(document: &Value, fields: &[String], always: &[&str]) -> Value {
    let Some(map) = document.as_object() else {
        return document.clone();
    };
    let mut out = Map::new();
    for name in always {
        if let Some(value) = map.get(*name) {
            out.insert((*name).to_owned(), value.clone());
        }
    }
    for field in fields {
        keep(map, field, &mut out);
    }
    Value::Object(out)
}

/// Copies what stands at a dotted path, with the objects that lead there.
fn keep(from: &Map<String, Value>, path: &str, to: &mut Map<String, Value>) {
    if let Some(value) = from.get(path) {
        to.insert(path.to_owned(), value.clone());
        return;
    }
    let Some((step, rest)) = path.split_once('.') else {
        return;
    };
    let Some(Value::Object(inner)) = from.get(step) else {
        return;
    };
    let place = to.entry(step).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(place) = place {
        keep(inner, rest, place);
    }
}

fn refuse_unknown(map: &Map<String, Value>, known: &[&str]) -> Result<(), ApiError> {
    let unknown: Vec<String> = map
        .keys()
        .filter(|k| !known.contains(&k.as_str()))
        .cloned()
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(not_known(unknown, known))
}

fn not_known(unknown: Vec<String>, known: &[&str]) -> ApiError {
    let reason = format!(
        "criteria have no {}; they have {}",
        unknown.join(", "),
        known.join(", ")
    );
    ApiError::Invalid {
        properties: unknown,
        reason,
    }
}

fn filters_of(name: &str, value: Option<&Value>) -> Result<Map<String, Value>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(_) => Err(ApiError::invalid(name, format!("{name} must be an object"))),
    }
}

fn compiled(name: &str, filters: &Map<String, Value>) -> Result<Filter, ApiError> {
    Filter::parse(filters).map_err(|e| ApiError::invalid(name, e))
}

fn sort_of(name: &str, value: Option<&Value>) -> Result<Vec<SortKey>, ApiError> {
    let wrong = || {
        let reason = format!("{name} must be a list of pairs like [\"id\", \"ascending\"] or [\"id\", -1]");
        ApiError::invalid(name, reason)
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|pair| sort_key(pair).ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}

fn sort_key(pair: &Value) -> Option<SortKey> {
    let [Value::String(field), direction] = pair.as_array()?.as_slice() else {
        return None;
    };
    let descending = match direction {
        Value::String(text) if text.eq_ignore_ascii_case("ascending") => false,
        Value::String(text) if text.eq_ignore_ascii_case("descending") => true,
        Value::Number(n) if n.as_i64() == Some(1) => false,
        Value::Number(n) if n.as_i64() == Some(-1) => true,
        _ => return None,
    };
    let path = field.split('.').map(ToOwned::to_owned).collect();
    Some(SortKey { path, descending })
}

fn limit_of(map: &Map<String, Value>) -> Result<Option<usize>, ApiError> {
    number_of("limit", map.get("limit"), 1)
}

fn number_of(name: &str, value: Option<&Value>, least: u64) -> Result<Option<usize>, ApiError> {
    let given = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let number = given.as_u64().filter(|n| *n >= least).ok_or_else(|| {
        let reason = format!("{name} is {given}; give a whole number from {least} on");
        ApiError::invalid(name, reason)
    })?;
    Ok(Some(usize::try_from(number).unwrap_or(usize::MAX)))
}

fn fields_of(name: &str, value: Option<&Value>) -> Result<Option<Vec<String>>, ApiError> {
    let wrong = || ApiError::invalid(name, format!("{name} must be a list of names"));
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => {
            let names = list.iter().map(|v| v.as_str().map(ToOwned::to_owned));
            names.collect::<Option<_>>().map(Some).ok_or_else(wrong)
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn criteria(value: &Value) -> Result<Criteria, ApiError> {
        Criteria::parse(value.as_object().unwrap())
    }

    #[test]
    fn faults_name_their_property() {
        for (bad, property) in [
            (json!({"filter": {}}), "filter"),
            (json!({"filters": []}), "filters"),
            (json!({"sort": "id"}), "sort"),
            (json!({"sort": [["id", "up"]]}), "sort"),
            (json!({"limit": 0}), "limit"),
            (json!({"limit": true}), "limit"),
            (json!({"skip": -1}), "skip"),
            (json!({"fields": [1]}), "fields"),
        ] {
            match criteria(&bad) {
                Err(ApiError::Invalid { properties, .. }) => assert_eq!(properties, [property]),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_query_string_says_the_same_as_a_body() {
        let query = Query::of(&[
            ("filters", r#"{"id": {"$regex": "^b"}}"#),
            ("sort", r#"[["id", "descending"]]"#),
            ("limit", "2"),
            ("field", "id"),
            ("details", "true"),
        ]);
        let criteria = Criteria::from_query(&query, &["details"]).unwrap();
        let documents = ["a", "b", "b2", "b3"]
            .map(|id| json!({"id": id, "x": 1}))
            .to_vec();
        let found: Vec<_> = criteria
            .apply(documents)
            .into_iter()
            .map(|d| criteria.project(d, &[]))
            .collect();
        assert_eq!(found, [json!({"id": "b3"}), json!({"id": "b2"})]);
        assert!(Criteria::from_query(&query, &[]).is_err());
    }

    #[test]
    fn fields_keep_dotted_paths_and_what_is_always_there() {
        let criteria = criteria(&json!({"fields": ["notes.a", "absent.b"]})).unwrap();
        let document = json!({"id": 1, "notes": {"a": 2, "b": 3}, "x": 4});
        assert_eq!(
            criteria.project(document, &["id"]),
            json!({"id": 1, "notes": {"a": 2}})
        );
    }

    proptest! {
        #[test]
        fn a_search_is_sorted_and_pages_join_to_the_whole(
            numbers in prop::collection::vec(0_i64..5, 0..12), size in 1_usize..5
        ) {
            let documents: Vec<Value> =
                numbers.iter().enumerate().map(|(place, n)| json!({"n": n, "place": place})).collect();
            let whole = criteria(&json!({"sort": [["n", -1]]})).unwrap().apply(documents.clone());
            for pair in whole.windows(2) {
                let key = |d: &Value| (-d["n"].as_i64().unwrap(), d["place"].as_i64().unwrap());
                prop_assert!(key(&pair[0]) < key(&pair[1]), "sorted, and stable");
            }
            let mut joined = Vec::new();
            for skip in (0..documents.len()).step_by(size) {
                let page = json!({"sort": [["n", -1]], "skip": skip, "limit": size});
                joined.extend(criteria(&page).unwrap().apply(documents.clone()));
            }
            prop_assert_eq!(joined, whole);
        }
    }
}
