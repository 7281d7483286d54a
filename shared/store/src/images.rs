//! What only the registry API v1 has: images by their ids, and tags beside the units.

use std::collections::BTreeSet;

use pulp_model::{
    RepositoryId, TagName,
    unit::{ImageId, ImageUnit, Unit, UnitType, V1Tag},
};
use serde_json::{Map, Value, json};

use crate::{
    FencedTx, Store, StoreError,
    engine::{CHUNK, bulk, placeholders},
    repositories::v1_tags,
    row,
    units::read_unit,
};

impl Store {
    /// Those of these v1 images that any repository has or had: an image's id stands for one content, whoever brought
    /// it first.
    pub async fn images(&self, ids: &BTreeSet<ImageId>) -> Result<Vec<ImageUnit>, StoreError> {
        let ids: Vec<&ImageId> = ids.iter().collect();
        let mut found = Vec::new();
        for chunk in ids.chunks(CHUNK) {
            let sql = format!(
                "SELECT unit_type_id, fields FROM units WHERE unit_type_id = $1 AND identity IN ({})",
                placeholders(2, chunk.len())
            );
            let mut query = bulk(sql, chunk.len()).bind(UnitType::DockerImage.as_str());
            for id in chunk {
                query = query.bind(id.as_str());
            }
            for image in &query.fetch_all(&self.pool).await? {
                if let Unit::Image(image) = read_unit(image)? {
                    found.push(image);
                }
            }
        }
        Ok(found)
    }
}

impl FencedTx {
    /// Puts `new` v1 tags over those of the same name.
    pub async fn merge_v1_tags(&mut self, id: &RepositoryId, new: &[V1Tag]) -> Result<bool, StoreError> {
        self.change_v1_tags(id, new, &BTreeSet::new()).await
    }

    /// Puts `new` v1 tags over those of the same name, and takes those of the names `gone` away. False if there is no
    /// such repository.
    pub async fn change_v1_tags(
        &mut self,
        id: &RepositoryId,
        new: &[V1Tag],
        gone: &BTreeSet<TagName>,
    ) -> Result<bool, StoreError> {
        let select = self.locking("SELECT scratchpad FROM repositories WHERE repo_id = $1 FOR UPDATE");
        let Some(found) = sqlx::query(select)
            .bind(id.as_str())
            .fetch_optional(self.on())
            .await?
        else {
            return Ok(false);
        };
        let mut scratchpad: Map<String, Value> = row::json(&found, "scratchpad")?;
        let mut old = v1_tags(&scratchpad);
        old.retain(|t| !gone.contains(&t.tag));
        let merged = pulp_model::unit::merge_v1_tags(&old, new);
        scratchpad.insert("tags".to_owned(), json!(merged));
        sqlx::query("UPDATE repositories SET scratchpad = $2 WHERE repo_id = $1")
            .bind(id.as_str())
            .bind(row::to_json(&scratchpad))
            .execute(self.on())
            .await?;
        Ok(true)
    }
}
