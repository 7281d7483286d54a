//! Filters: the subset of MongoDB's query language that clients of Pulp 2 use, decided over JSON documents.
//!
//! A dotted path steps into objects, into array elements by index, and into every object of an array. A test
//! holds if it holds for any value found, or for any element of an array found; `null` equals what is absent.
//! Comparisons hold only between values of one type. `$ne`, `$nin`, `$not` and `$nor` are exact complements.

use std::cmp::Ordering;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

/// A filter that was read.
#[derive(Debug, Clone)]
pub(crate) enum Filter {
    /// All of these.
    And(Vec<Filter>),
    /// Any of these.
    Or(Vec<Filter>),
    /// Not this.
    Not(Box<Filter>),
    /// What stands at a path.
    Field { path: Vec<String>, test: Test },
}

/// What is asked of the values at a path.
#[derive(Debug, Clone)]
pub(crate) enum Test {
    Equal(Value),
    AnyOf(Vec<Value>),
    AllOf(Vec<Value>),
    Regex(Regex),
    Less(Value),
    AtMost(Value),
    Greater(Value),
    AtLeast(Value),
    Exists,
    ElementDocument(Box<Filter>),
    ElementValue(Box<Test>),
    And(Vec<Test>),
    Not(Box<Test>),
}

/// The largest compiled regular expression, in bytes, and how many a filter may have: it must not take the API's
/// memory. Clients ask for many units at once by one long alternative, so one may be large.
const REGEX_LIMIT: usize = 4 * 1024 * 1024;
const MOST_REGEXES: usize = 32;

impl Filter {
    /// Reads a filter; the error says what is wrong.
    pub(crate) fn parse(map: &Map<String, Value>) -> Result<Self, String> {
        if regexes(map) > MOST_REGEXES {
            return Err(format!(
                "more than {MOST_REGEXES} regular expressions; join them by | in fewer"
            ));
        }
        Self::read(map)
    }

    fn read(map: &Map<String, Value>) -> Result<Self, String> {
        let mut parts = Vec::with_capacity(map.len());
        for (key, value) in map {
            parts.push(match key.as_str() {
                "$and" => Self::And(branches(key, value)?),
                "$or" => Self::Or(branches(key, value)?),
                "$nor" => Self::Not(Box::new(Self::Or(branches(key, value)?))),
                operator if operator.starts_with('$') => {
                    return Err(format!(
                        "{operator} is not known at this place; $and, $or and $nor stand here, others within a field"
                    ));
                }
                path => Self::Field {
                    path: path.split('.').map(ToOwned::to_owned).collect(),
                    test: Test::parse(value).map_err(|e| format!("{path}: {e}"))?,
                },
            });
        }
        Ok(match parts.len() {
            1 => parts.remove(0),
            _ => Self::And(parts),
        })
    }

    /// Whether a document is wanted.
    pub(crate) fn matches(&self, document: &Value) -> bool {
        match self {
            Self::And(parts) => parts.iter().all(|p| p.matches(document)),
            Self::Or(parts) => parts.iter().any(|p| p.matches(document)),
            Self::Not(part) => !part.matches(document),
            Self::Field { path, test } => test.holds(&values_at(document, path)),
        }
    }
}

impl Default for Filter {
    /// Every document.
    fn default() -> Self {
        Self::And(Vec::new())
    }
}

fn branches(operator: &str, value: &Value) -> Result<Vec<Filter>, String> {
    let Some(list) = value.as_array().filter(|l| !l.is_empty()) else {
        return Err(format!("{operator} takes a list of at least one filter"));
    };
    list.iter()
        .map(|part| match part.as_object() {
            Some(map) => Filter::read(map),
            None => Err(format!("{operator} takes a list of objects")),
        })
        .collect()
}

/// How many regular expressions a filter may have, counted generously.
fn regexes(map: &Map<String, Value>) -> usize {
    let within = |value: &Value| match value {
        Value::Object(inner) => regexes(inner),
        Value::Array(list) => list.iter().filter_map(Value::as_object).map(regexes).sum(),
        _ => 0,
    };
    let one = |key: &str, value: &Value| usize::from(key == "$regex" || (key == "$not" && value.is_string()));
    map.iter()
        .map(|(key, value)| one(key, value) + within(value))
        .sum()
}

/// Whether an object holds operators rather than being a value.
fn is_operators(map: &Map<String, Value>) -> bool {
    map.keys()
        .next()
        .is_some_and(|k| k.starts_with('$') && k != "$date" && k != "$oid")
}

impl Test {
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Object(map) if is_operators(map) => Self::operators(map),
            literal => Ok(Self::Equal(plain(literal)?)),
        }
    }

    fn operators(map: &Map<String, Value>) -> Result<Self, String> {
        let mut tests = Vec::with_capacity(map.len());
        for (operator, value) in map {
            tests.push(match operator.as_str() {
                "$eq" => Self::Equal(plain(value)?),
                "$ne" => Self::Not(Box::new(Self::Equal(plain(value)?))),
                "$in" => Self::AnyOf(literals(operator, value)?),
                "$nin" => Self::Not(Box::new(Self::AnyOf(literals(operator, value)?))),
                "$all" => Self::AllOf(literals(operator, value)?),
                "$lt" => Self::Less(plain(value)?),
                "$lte" => Self::AtMost(plain(value)?),
                "$gt" => Self::Greater(plain(value)?),
                "$gte" => Self::AtLeast(plain(value)?),
                "$exists" => match truth(value) {
                    Some(true) => Self::Exists,
                    Some(false) => Self::Not(Box::new(Self::Exists)),
                    None => return Err("$exists takes true or false".to_owned()),
                },
                "$regex" => regex(value, map.get("$options"))?,
                "$options" if map.contains_key("$regex") => continue,
                "$not" => Self::Not(Box::new(match value {
                    Value::String(_) => regex(value, None)?,
                    Value::Object(inner) if is_operators(inner) => Self::operators(inner)?,
                    _ => return Err("$not takes a regular expression or an object of operators".to_owned()),
                })),
                "$elemMatch" => match value.as_object() {
                    Some(inner) if is_operators(inner) && !is_branching(inner) => {
                        Self::ElementValue(Box::new(Self::operators(inner)?))
                    }
                    Some(inner) => Self::ElementDocument(Box::new(Filter::read(inner)?)),
                    None => return Err("$elemMatch takes an object".to_owned()),
                },
                unknown => {
                    return Err(format!(
                        "{unknown} is not known; known are $eq, $ne, $in, $nin, $all, $lt, $lte, $gt, $gte, $exists, \
                         $regex, $options, $not and $elemMatch"
                    ));
                }
            });
        }
        Ok(match tests.len() {
            1 => tests.remove(0),
            _ => Self::And(tests),
        })
    }

    /// Whether the test holds, given every value found at its path.
    fn holds(&self, found: &[&Value]) -> bool {
        // A value, or each of its elements if it is an array.
        let any = |test: &dyn Fn(&Value) -> bool| {
            found
                .iter()
                .any(|v| test(v) || v.as_array().is_some_and(|list| list.iter().any(test)))
        };
        let ordered = |literal: &Value, wanted: &dyn Fn(Ordering) -> bool| {
            any(&|v| rank(v) == rank(literal) && wanted(order(v, literal)))
        };
        match self {
            Self::Equal(Value::Null) if found.is_empty() => true,
            Self::Equal(literal) => any(&|v| equal(v, literal)),
            Self::AnyOf(list) => list.iter().any(|l| Self::equals(l, found)),
            Self::AllOf(list) => !list.is_empty() && list.iter().all(|l| Self::equals(l, found)),
            Self::Regex(regex) => any(&|v| v.as_str().is_some_and(|t| regex.is_match(t))),
            Self::Less(l) => ordered(l, &Ordering::is_lt),
            Self::AtMost(l) => ordered(l, &Ordering::is_le),
            Self::Greater(l) => ordered(l, &Ordering::is_gt),
            Self::AtLeast(l) => ordered(l, &Ordering::is_ge),
            Self::Exists => !found.is_empty(),
            Self::ElementDocument(filter) => elements(found).any(|e| e.is_object() && filter.matches(e)),
            Self::ElementValue(test) => elements(found).any(|e| test.holds(&[e])),
            Self::And(tests) => tests.iter().all(|t| t.holds(found)),
            Self::Not(test) => !test.holds(found),
        }
    }

    fn equals(literal: &Value, found: &[&Value]) -> bool {
        match literal {
            Value::Null if found.is_empty() => true,
            literal => found.iter().any(|v| {
                equal(v, literal)
                    || v.as_array()
                        .is_some_and(|list| list.iter().any(|e| equal(e, literal)))
            }),
        }
    }
}

fn is_branching(map: &Map<String, Value>) -> bool {
    map.keys().any(|k| matches!(k.as_str(), "$and" | "$or" | "$nor"))
}

fn elements<'a>(found: &'a [&'a Value]) -> impl Iterator<Item = &'a Value> {
    found.iter().filter_map(|v| v.as_array()).flatten()
}

fn literals(operator: &str, value: &Value) -> Result<Vec<Value>, String> {
    match value.as_array() {
        Some(list) => list.iter().map(plain).collect(),
        None => Err(format!("{operator} takes a list")),
    }
}

fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => n.as_i64().map(|n| n != 0),
        _ => None,
    }
}

/// A literal as documents have it: `{"$date": …}` becomes the instant's text, `{"$oid": …}` stays.
fn plain(value: &Value) -> Result<Value, String> {
    match value {
        Value::Object(map) => {
            if let Some(date) = map.get("$date").filter(|_| map.len() == 1) {
                let instant = date.as_str().and_then(crate::query::instant);
                let instant =
                    instant.ok_or_else(|| format!("$date is {date}; give an instant in ISO 8601"))?;
                return Ok(Value::String(instant.to_string()));
            }
            let plain = map.iter().map(|(k, v)| Ok((k.clone(), plain(v)?)));
            plain.collect::<Result<_, String>>().map(Value::Object)
        }
        Value::Array(list) => list.iter().map(plain).collect::<Result<_, _>>().map(Value::Array),
        other => Ok(other.clone()),
    }
}

fn regex(pattern: &Value, options: Option<&Value>) -> Result<Test, String> {
    let Some(pattern) = pattern.as_str() else {
        return Err("$regex takes a string".to_owned());
    };
    let mut builder = RegexBuilder::new(pattern);
    builder.size_limit(REGEX_LIMIT).dfa_size_limit(REGEX_LIMIT);
    for option in options.and_then(Value::as_str).unwrap_or_default().chars() {
        match option {
            'i' => builder.case_insensitive(true),
            'm' => builder.multi_line(true),
            's' => builder.dot_matches_new_line(true),
            'x' => builder.ignore_whitespace(true),
            other => return Err(format!("$options has {other:?}; known are i, m, s and x")),
        };
    }
    builder
        .build()
        .map(Test::Regex)
        .map_err(|e| format!("$regex: {e}"))
}

/// Every value at a path; none if there is nothing.
pub(crate) fn values_at<'a>(document: &'a Value, path: &[String]) -> Vec<&'a Value> {
    let Some((step, rest)) = path.split_first() else {
        return vec![document];
    };
    match document {
        Value::Object(map) => {
            let mut found = map
                .get(step)
                .map(|next| values_at(next, rest))
                .unwrap_or_default();
            // Keys with dots in them: what Pulp 2's database refused, ours allows.
            if !rest.is_empty()
                && let Some(whole) = map.get(&path.join("."))
            {
                found.push(whole);
            }
            found
        }
        Value::Array(list) => {
            let by_index = step.parse::<usize>().ok().and_then(|i| list.get(i));
            let indexed = by_index.into_iter().flat_map(|next| values_at(next, rest));
            let inner = list
                .iter()
                .filter(|e| e.is_object())
                .flat_map(|e| values_at(e, path));
            indexed.chain(inner).collect()
        }
        _ => Vec::new(),
    }
}

/// Equality as databases have it: 1 is 1.0, and an object id equals its text.
fn equal(value: &Value, literal: &Value) -> bool {
    match (value, literal) {
        (Value::Object(id), Value::String(text)) if id.len() == 1 => {
            id.get("$oid").and_then(Value::as_str) == Some(text)
        }
        _ => rank(value) == rank(literal) && order(value, literal).is_eq(),
    }
}

/// The order of types: MongoDB's.
const fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Number(_) => 1,
        Value::String(_) => 2,
        Value::Object(_) => 3,
        Value::Array(_) => 4,
        Value::Bool(_) => 5,
    }
}

/// A total order over all values: by type, then by value.
pub(crate) fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let unequal = a.iter().zip(b).map(|(a, b)| order(a, b)).find(|o| o.is_ne());
            unequal.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let mut pairs = a.iter().zip(b);
            let unequal = pairs.find_map(|((ka, va), (kb, vb))| {
                Some(ka.cmp(kb).then_with(|| order(va, vb))).filter(|o| o.is_ne())
            });
            unequal.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn filter(value: &Value) -> Filter {
        Filter::parse(value.as_object().unwrap()).unwrap()
    }

    fn matches(query: &Value, document: &Value) -> bool {
        filter(query).matches(document)
    }

    #[test]
    fn the_queries_that_clients_send_find_what_they_mean() {
        let task =
            json!({"state": "running", "tags": ["pulp:repository:r", "pulp:action:sync"], "group_id": null});
        for yes in [
            json!({}),
            json!({"state": {"$in": ["running", "waiting"]}, "group_id": null}),
            json!({"state": {"$nin": ["finished"]}, "tags": {"$all": ["pulp:repository:r", "pulp:action:sync"]}}),
            json!({"tags": "pulp:action:sync"}),
            json!({"absent": null}),
            json!({"absent": {"$in": [null]}}),
            json!({"absent": {"$exists": false}}),
            json!({"absent": {"$ne": 1}}),
            json!({"tags": {"$elemMatch": {"$regex": "^pulp:action"}}}),
            json!({"state": {"$not": "^fin"}}),
            json!({"$or": [{"state": "x"}, {"state": {"$regex": "RUN", "$options": "i"}}]}),
            json!({"tags.0": "pulp:repository:r"}),
        ] {
            assert!(matches(&yes, &task), "{yes}");
        }
        for no in [
            json!({"state": null}),
            json!({"tags": {"$all": []}}),
            json!({"tags": {"$all": ["pulp:repository:r", "x"]}}),
            json!({"state": {"$gt": 1}}),
            json!({"group_id": {"$exists": false}}),
            json!({"$nor": [{"state": "running"}]}),
        ] {
            assert!(!matches(&no, &task), "{no}");
        }
    }

    #[test]
    fn dotted_paths_step_into_objects_and_arrays_of_objects() {
        let doc = json!({"notes": {"_repo-type": "docker-repo"}, "fs_layers": [{"size": 1}, {"size": 7}]});
        assert!(matches(&json!({"notes._repo-type": "docker-repo"}), &doc));
        assert!(matches(&json!({"fs_layers.size": {"$gte": 7}}), &doc));
        assert!(!matches(&json!({"fs_layers.size": {"$gt": 7}}), &doc));
        assert!(matches(&json!({"fs_layers.1.size": 7.0}), &doc));
        assert!(matches(
            &json!({"fs_layers": {"$elemMatch": {"size": {"$gt": 1, "$lt": 8}}}}),
            &doc
        ));
        assert!(!matches(
            &json!({"fs_layers": {"$elemMatch": {"size": {"$gt": 1, "$lt": 7}}}}),
            &doc
        ));
    }

    #[test]
    fn dates_and_object_ids_compare_with_what_documents_have() {
        let doc = json!({"_id": {"$oid": "abc"}, "created": "2021-03-04T05:06:07Z"});
        assert!(matches(&json!({"_id": "abc"}), &doc));
        assert!(matches(&json!({"_id": {"$oid": "abc"}}), &doc));
        assert!(matches(
            &json!({"created": {"$gt": {"$date": "2021-03-04T05:06:06+00:00"}}}),
            &doc
        ));
        assert!(!matches(
            &json!({"created": {"$lt": {"$date": "2021-03-04"}}}),
            &doc
        ));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (bad, named) in [
            (json!({"$where": "1"}), "$where"),
            (json!({"a": {"$near": 1}}), "$near"),
            (json!({"a": {"$in": 1}}), "$in"),
            (json!({"a": {"$regex": "("}}), "$regex"),
            (json!({"$or": []}), "$or"),
            (json!({"a": {"$date": 5}}), "$date"),
            (json!({"a": {"$not": 5}}), "$not"),
            (json!({"a": {"$exists": "x"}}), "$exists"),
            (json!({"$or": vec![json!({"a": {"$regex": "x"}}); 33]}), "32"),
            (json!({"a": {"$regex": "((((a{99}){99}){99}){99})"}}), "$regex"),
        ] {
            let error = Filter::parse(bad.as_object().unwrap()).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_long_alternative_of_image_ids_is_taken() {
        let ids: Vec<String> = (0..500).map(|n| format!("{n:064x}")).collect();
        let query = json!({"image_id": {"$regex": ids.join("|")}});
        assert!(matches(&query, &json!({"image_id": ids[499]})));
        assert!(!matches(&query, &json!({"image_id": "f".repeat(64)})));
    }

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3_i64..3).prop_map(Value::from),
            prop_oneof![Just(0.5), Just(1.0)].prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from),
        ]
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = scalar().prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::vec(("[ab]", inner), 0..3)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        });
        prop::collection::vec(("[abc]", leaf), 0..4)
            .prop_map(|pairs| Value::Object(pairs.into_iter().collect()))
    }

    fn path() -> impl Strategy<Value = String> {
        prop_oneof![Just("a"), Just("b"), Just("a.b"), Just("a.0"), Just("c.a.b")].prop_map(str::to_owned)
    }

    fn operators() -> impl Strategy<Value = Value> {
        let list = || prop::collection::vec(scalar(), 0..3);
        prop_oneof![
            scalar().prop_map(|v| json!({"$eq": v})),
            scalar().prop_map(|v| json!({"$ne": v})),
            list().prop_map(|v| json!({"$in": v})),
            list().prop_map(|v| json!({"$nin": v})),
            list().prop_map(|v| json!({"$all": v})),
            scalar().prop_map(|v| json!({"$gt": v})),
            scalar().prop_map(|v| json!({"$lte": v})),
            any::<bool>().prop_map(|v| json!({"$exists": v})),
            "[ab]".prop_map(|v| json!({"$regex": v})),
            "[ab]".prop_map(|v| json!({"$elemMatch": {"$regex": v}})),
        ]
    }

    proptest! {
        #[test]
        fn not_is_the_complement(doc in document(), path in path(), test in operators()) {
            let plain = matches(&json!({path.clone(): test.clone()}), &doc);
            prop_assert_ne!(plain, matches(&json!({path.clone(): {"$not": test.clone()}}), &doc));
            prop_assert_ne!(plain, matches(&json!({"$nor": [{path: test}]}), &doc));
        }

        #[test]
        fn ne_and_nin_are_complements(doc in document(), path in path(), a in scalar(), b in scalar()) {
            let m = |test: Value| matches(&json!({path.clone(): test}), &doc);
            prop_assert_ne!(m(json!({"$eq": a.clone()})), m(json!({"$ne": a.clone()})));
            prop_assert_ne!(m(json!({"$in": [a.clone(), b.clone()]})), m(json!({"$nin": [a.clone(), b.clone()]})));
            prop_assert_eq!(
                m(json!({"$in": [a.clone(), b.clone()]})),
                m(json!({"$eq": a.clone()})) || m(json!({"$eq": b.clone()}))
            );
            prop_assert_eq!(m(json!({"$all": [a.clone(), b.clone()]})), m(json!({"$eq": a})) && m(json!({"$eq": b})));
        }

        #[test]
        fn and_or_obey_de_morgan(
            doc in document(), p in path(), q in path(), s in operators(), t in operators()
        ) {
            let (a, b) = (json!({p: s}), json!({q: t}));
            let and = matches(&json!({"$and": [a.clone(), b.clone()]}), &doc);
            let or = matches(&json!({"$or": [a.clone(), b.clone()]}), &doc);
            let (only_a, only_b) = (matches(&a, &doc), matches(&b, &doc));
            prop_assert_eq!(and, only_a && only_b);
            prop_assert_eq!(or, only_a || only_b);
            let neither = matches(&json!({"$and": [{"$nor": [a]}, {"$nor": [b]}]}), &doc);
            prop_assert_eq!(neither, !or);
        }

        #[test]
        fn a_document_equals_what_it_holds(doc in document(), value in scalar()) {
            let mut doc = doc;
            doc["a"] = value.clone();
            let query = json!({"a": value});
            prop_assert!(matches(&query, &doc));
        }

        #[test]
        fn the_order_is_total(a in document(), b in document(), c in document()) {
            prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
            if order(&a, &b).is_le() && order(&b, &c).is_le() {
                prop_assert!(order(&a, &c).is_le());
            }
        }
    }
}
