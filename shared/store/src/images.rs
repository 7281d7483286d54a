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

/// How long images are remembered of a sync that is not tried again, in microseconds.
const REMEMBERED_FOR: i64 = 7 * 24 * 3600 * 1_000_000;

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

impl Store {
    /// Remembers an image that a sync has brought here, for the next try of that sync. `upstream` names the registry and
    /// the repository there: what it says of an id holds for nobody else.
    pub async fn remember_image(&self, upstream: &str, image: &ImageUnit) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?.micros();
        sqlx::query("DELETE FROM v1_downloads WHERE at < $1")
            .bind(now - REMEMBERED_FOR)
            .execute(tx.on())
            .await?;
        let insert = "INSERT INTO v1_downloads (upstream, image_id, fields, at) VALUES ($1, $2, $3, $4) \
                      ON CONFLICT (upstream, image_id) DO UPDATE SET fields = excluded.fields, at = excluded.at";
        sqlx::query(insert)
            .bind(upstream)
            .bind(image.image_id.as_str())
            .bind(row::to_json(image))
            .bind(now)
            .execute(tx.on())
            .await?;
        tx.commit().await
    }

    /// Those of these images that an earlier try of a sync from this upstream has brought here.
    pub async fn remembered_images(
        &self,
        upstream: &str,
        ids: &BTreeSet<ImageId>,
    ) -> Result<Vec<ImageUnit>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query("SELECT fields FROM v1_downloads WHERE upstream = $1")
            .bind(upstream)
            .fetch_all(&self.pool)
            .await?;
        let images: Vec<ImageUnit> = rows
            .iter()
            .map(|r| row::json(r, "fields"))
            .collect::<Result<_, _>>()?;
        Ok(images.into_iter().filter(|i| ids.contains(&i.image_id)).collect())
    }
}

impl FencedTx {
    /// Forgets what was [remembered](Store::remember_image) of an upstream: the sync is at its end.
    pub async fn forget_images(&mut self, upstream: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM v1_downloads WHERE upstream = $1")
            .bind(upstream)
            .execute(self.on())
            .await?;
        Ok(())
    }

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
