//! What a repository has for the v1 API: images and tags, as its redirect file lists them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::tags::{NONE, Tags};

/// Images and tags of a v1 repository.
#[derive(Debug, Default)]
pub(crate) struct V1Images {
    /// Ids of the images listed, and of those that only tags name.
    ids: Tags,
    /// Each with the place of its image's id.
    tags: Tags,
    /// The list of images, if it is another than that of their sorted ids.
    listed: Option<Box<str>>,
}

impl V1Images {
    /// Of the lists in a redirect file; each image has an `id`. Tags of no image are no tags.
    pub(super) fn new(images: Vec<Map<String, Value>>, tags: &BTreeMap<String, Option<String>>) -> Self {
        fn id(image: &Map<String, Value>) -> Option<&str> {
            image.get("id")?.as_str()
        }
        let listed: BTreeSet<&str> = images.iter().filter_map(id).collect();
        let tagged = tags.values().filter_map(|id| id.as_deref());
        let all: BTreeSet<&str> = listed.iter().copied().chain(tagged).collect();
        let ids = Tags::new(all.into_iter().map(|id| {
            let is_listed = if listed.contains(id) { 0 } else { NONE };
            (id, [is_listed, NONE, NONE])
        }));
        let tags = Tags::new(tags.iter().filter_map(|(tag, id)| {
            let place = ids.place(id.as_deref()?)?;
            Some((tag.as_str(), [u32::try_from(place).ok()?, NONE, NONE]))
        }));
        let plain = images.iter().all(|image| image.len() == 1) && images.iter().filter_map(id).eq(listed);
        let listed = (!plain).then(|| Value::from(images).to_string().into_boxed_str());
        Self { ids, tags, listed }
    }

    /// The images as the redirect file lists them, as JSON.
    pub(crate) fn to_json(&self) -> String {
        if let Some(listed) = &self.listed {
            return listed.to_string();
        }
        let listed: Value = self.sorted_ids().map(|id| json!({ "id": id })).collect();
        listed.to_string()
    }

    /// Ids of the images in the order of the redirect file.
    pub(crate) fn ids(&self) -> Vec<String> {
        match &self.listed {
            Some(listed) => {
                let images: Vec<Map<String, Value>> = serde_json::from_str(listed).unwrap_or_default();
                let ids = images.iter().filter_map(|image| image.get("id")?.as_str());
                ids.map(str::to_owned).collect()
            }
            None => self.sorted_ids().map(str::to_owned).collect(),
        }
    }

    fn sorted_ids(&self) -> impl Iterator<Item = &str> {
        let ids = self.ids.iter().filter(|(_, [is_listed, ..])| *is_listed != NONE);
        ids.map(|(id, _)| id)
    }

    /// The id as the redirect file has it, if it lists that image.
    pub(crate) fn get(&self, id: &str) -> Option<&str> {
        let place = self.ids.place(id)?;
        let [is_listed, ..] = self.ids.targets(place)?;
        (is_listed != NONE).then(|| self.ids.name(place))
    }

    /// Tags in order, each with its image's id.
    pub(crate) fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tags
            .iter()
            .map(|(tag, [image, ..])| (tag, self.id_at(image)))
    }

    /// The id of the image that a tag names.
    pub(crate) fn tag(&self, name: &str) -> Option<&str> {
        let [image, ..] = self.tags.find(name)?;
        Some(self.id_at(image))
    }

    fn id_at(&self, place: u32) -> &str {
        usize::try_from(place).map_or("", |place| self.ids.name(place))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn images(list: Value) -> Vec<Map<String, Value>> {
        serde_json::from_value(list).unwrap()
    }

    #[test]
    fn images_and_tags_read_as_they_were_listed() {
        let tags = [("latest", Some("b")), ("gone", Some("x")), ("none", None)]
            .map(|(tag, id)| (tag.to_owned(), id.map(str::to_owned)))
            .into();
        for list in [
            json!([{"id": "a"}, {"id": "b"}]),
            json!([{"id": "b"}, {"id": "a"}]),
            json!([{"id": "a", "size": 7}, {"id": "b"}]),
            json!([{"id": "b"}, {"id": "b"}, {"id": "a"}]),
        ] {
            let made = V1Images::new(images(list.clone()), &tags);
            assert_eq!(serde_json::from_str::<Value>(&made.to_json()).unwrap(), list);
            let ids: Vec<&str> = list
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["id"].as_str().unwrap())
                .collect();
            assert_eq!(made.ids(), ids);
            assert_eq!(
                (made.get("a"), made.get("x"), made.get("")),
                (Some("a"), None, None)
            );
            assert_eq!(made.tags().collect::<Vec<_>>(), [("gone", "x"), ("latest", "b")]);
            assert_eq!((made.tag("gone"), made.tag("none")), (Some("x"), None));
        }
    }
}
