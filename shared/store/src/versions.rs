//! Repository versions: each change of content is a new one, and any can be read again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pulp_model::{
    RepositoryId, Timestamp, VersionNumber,
    unit::{Selection, Unit, UnitType, V1Tag},
};
use serde_json::Value;
use sqlx::Row as _;

use crate::{
    FencedTx, Store, StoreError,
    engine::{bulk, placeholders, rows_of},
    repositories, row,
    units::{read_held_unit, read_unit, selection, unit_id},
};

/// Rows that one statement takes at most. SQLite looks each parameter up in a list of those before it, so that a statement
/// takes time by the square of its rows: with a thousand, the tags of a large repository kept its one writer busy for so
/// long that leases ran out.
const CHUNK: usize = 100;

/// One version of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryVersion {
    /// Its number; 0 is the empty one.
    pub number: VersionNumber,
    /// When it was committed.
    pub created: Timestamp,
    /// Units it has and the one before had not.
    pub added: i64,
    /// Units it has not and the one before had.
    pub removed: i64,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionChange {
    /// The newest version afterwards; unchanged if nothing was new.
    pub number: VersionNumber,
    /// Units added.
    pub added: u64,
    /// Units removed.
    pub removed: u64,
}

/// What one version has and another has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionDifference {
    /// Units of the later version only.
    pub added: Vec<Unit>,
    /// Units of the earlier version only.
    pub removed: Vec<Unit>,
}

impl Store {
    /// What version `later` of a repository has and `earlier` has not, and the reverse. Its cost is that of the
    /// changes between the two, whatever the repository holds.
    pub async fn version_difference(
        &self,
        repo: &RepositoryId,
        earlier: VersionNumber,
        later: VersionNumber,
    ) -> Result<VersionDifference, StoreError> {
        const SELECT: &str = "SELECT u.unit_type_id, u.fields, ru.absent, ru.made_from FROM repository_units ru JOIN units u ON u.unit_id = ru.unit_id \
                              WHERE ru.repo_id = $1 AND";
        let read = async |which: &str| -> Result<BTreeMap<String, Unit>, StoreError> {
            let sql = crate::engine::assembled(format!("{SELECT} {which}"));
            let query = sqlx::query(sql).bind(repo.as_str()).bind(earlier.0).bind(later.0);
            let rows = query.fetch_all(&self.pool).await?;
            rows.iter()
                .map(|r| read_held_unit(r).map(|unit| (unit_id(&unit), unit)))
                .collect()
        };
        let mut added =
            read("ru.added_in > $2 AND ru.added_in <= $3 AND (ru.removed_in IS NULL OR ru.removed_in > $3)")
                .await?;
        let mut removed = read("ru.removed_in > $2 AND ru.removed_in <= $3 AND ru.added_in <= $2").await?;
        // What was taken away and brought in again between the two; a list of which other members may be missing now
        // is one that was added.
        removed.retain(|id, before| match added.get(id) {
            Some(now) if now == before => added.remove(id).is_none(),
            now => now.is_none(),
        });
        Ok(VersionDifference {
            added: added.into_values().collect(),
            removed: removed.into_values().collect(),
        })
    }

    /// Whether a unit in the newest version of a repository refers to one of these by something that must be there
    /// with it: a tag's target, a list's member, a manifest's config or layer.
    pub async fn any_is_referred_to(&self, repo: &RepositoryId, units: &[Unit]) -> Result<bool, StoreError> {
        for chunk in units.chunks(CHUNK) {
            // Which of a repository's rows are asked for is said by the edge, so that nobody reads all of them: right after
            // a large import a planner that has not counted them yet would.
            let sql = format!(
                "SELECT 1 AS found FROM unit_edges e JOIN repository_units ru ON ru.unit_id = e.parent_unit_id \
                 AND ru.repo_id = $1 || substr(e.parent_unit_id, 1, 0) WHERE ru.removed_in IS NULL \
                 AND e.role IN ('manifest', 'member', 'config', 'layer') AND e.child_identity IN ({}) LIMIT 1",
                placeholders(2, chunk.len())
            );
            let mut query = bulk(sql, chunk.len()).bind(repo.as_str());
            for unit in chunk {
                query = query.bind(unit.identity());
            }
            if query.fetch_optional(&self.pool).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All versions of a repository, oldest first.
    pub async fn repository_versions(
        &self,
        repo: &RepositoryId,
    ) -> Result<Vec<RepositoryVersion>, StoreError> {
        let sql = "SELECT number, created, added, removed FROM repository_versions WHERE repo_id = $1 ORDER BY number";
        let rows = sqlx::query(sql).bind(repo.as_str()).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|r| {
                Ok(RepositoryVersion {
                    number: VersionNumber(r.try_get("number")?),
                    created: row::instant(r, "created")?,
                    added: r.try_get("added")?,
                    removed: r.try_get("removed")?,
                })
            })
            .collect()
    }

    /// The v1 tags that a repository had in version `number`.
    pub async fn v1_tags_of_version(
        &self,
        repo: &RepositoryId,
        number: VersionNumber,
    ) -> Result<Vec<V1Tag>, StoreError> {
        let sql = "SELECT scratchpad_tags FROM repository_versions WHERE repo_id = $1 AND number = $2";
        let found = sqlx::query(sql)
            .bind(repo.as_str())
            .bind(number.0)
            .fetch_optional(&self.pool)
            .await?;
        Ok(found
            .map(|r| row::json(&r, "scratchpad_tags"))
            .transpose()?
            .unwrap_or_default())
    }
}

impl FencedTx {
    /// Adds `units` to a repository, as one new version. A tag replaces every other tag unit of its name that
    /// is not among `units`. `None` if the repository is gone.
    pub async fn commit_version(
        &mut self,
        repo: &RepositoryId,
        units: &[Unit],
    ) -> Result<Option<VersionChange>, StoreError> {
        self.commit_change(repo, units, &[]).await
    }

    /// [`Self::commit_version`] that takes `removed` away in the same version. What is in both stays. A list that is
    /// there takes the new [`Selection`]; this makes a version, but adds and removes nothing.
    pub async fn commit_change(
        &mut self,
        repo: &RepositoryId,
        units: &[Unit],
        removed: &[Unit],
    ) -> Result<Option<VersionChange>, StoreError> {
        let lock = self.locking("SELECT version, scratchpad FROM repositories WHERE repo_id = $1 FOR UPDATE");
        let Some(found) = sqlx::query(lock)
            .bind(repo.as_str())
            .fetch_optional(self.on())
            .await?
        else {
            return Ok(None);
        };
        let base: i64 = found.try_get("version")?;
        let scratchpad: serde_json::Map<String, Value> = row::json(&found, "scratchpad")?;
        let next = base + 1;
        let now = self.now().await?;
        let present = self.current_unit_ids(repo).await?;

        // In the order of their ids: two imports that bring the same layers must not wait for each other crosswise.
        let wanted: BTreeMap<String, &Unit> = units.iter().map(|u| (unit_id(u), u)).collect();
        let (known, new): (Vec<_>, Vec<_>) = wanted.iter().partition(|(id, _)| present.contains(id.as_str()));
        let known: Vec<&str> = known.into_iter().map(|(id, _)| id.as_str()).collect();
        let new: Vec<(&str, &Unit)> = new.into_iter().map(|(id, unit)| (id.as_str(), *unit)).collect();
        let mut replaced: BTreeSet<String> = self.replaced_tags(repo, &wanted).await?.into_iter().collect();
        let removed = removed.iter().map(unit_id);
        replaced.extend(removed.filter(|id| present.contains(id) && !wanted.contains_key(id)));
        let replaced: Vec<&str> = replaced.iter().map(String::as_str).collect();

        self.insert_units(&new, now).await?;
        self.associate(repo, &new, next, now).await?;
        let selected = self.select_members(repo, &wanted, &known, next, now).await?;
        self.set_on_current(repo, "updated", now.micros(), &known).await?;
        self.set_on_current(repo, "removed_in", next, &replaced).await?;
        let (added, removed) = (new.len() as i64, replaced.len() as i64);

        let v1_tags = repositories::v1_tags(&scratchpad);
        if added == 0 && removed == 0 && !selected && !self.v1_tags_changed(repo, base, &v1_tags).await? {
            return Ok(Some(VersionChange {
                number: VersionNumber(base),
                added: 0,
                removed: 0,
            }));
        }
        let task = self.task_id().to_string();
        let insert = "INSERT INTO repository_versions (repo_id, number, created, task_id, added, removed, scratchpad_tags) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7)";
        sqlx::query(insert)
            .bind(repo.as_str())
            .bind(next)
            .bind(now.micros())
            .bind(task)
            .bind(added)
            .bind(removed)
            .bind(row::to_json(&v1_tags))
            .execute(self.on())
            .await?;
        let update = "UPDATE repositories SET version = $2, \
                      last_unit_added = CASE WHEN $3 > 0 THEN $5 ELSE last_unit_added END, \
                      last_unit_removed = CASE WHEN $4 > 0 THEN $5 ELSE last_unit_removed END WHERE repo_id = $1";
        sqlx::query(update)
            .bind(repo.as_str())
            .bind(next)
            .bind(added)
            .bind(removed)
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(Some(VersionChange {
            number: VersionNumber(next),
            added: added as u64,
            removed: removed as u64,
        }))
    }

    async fn current_unit_ids(&mut self, repo: &RepositoryId) -> Result<HashSet<String>, StoreError> {
        let sql = "SELECT unit_id FROM repository_units WHERE repo_id = $1 AND removed_in IS NULL";
        let rows = sqlx::query(sql).bind(repo.as_str()).fetch_all(self.on()).await?;
        rows.iter().map(|r| Ok(r.try_get("unit_id")?)).collect()
    }

    /// Makes those units that no repository had before, with what they refer to.
    async fn insert_units(&mut self, units: &[(&str, &Unit)], now: Timestamp) -> Result<(), StoreError> {
        for chunk in units.chunks(CHUNK) {
            let sql = format!(
                "INSERT INTO units (unit_id, unit_type_id, identity, fields, created) VALUES {} \
                 ON CONFLICT (unit_id) DO NOTHING RETURNING unit_id",
                rows_of(5, chunk.len())
            );
            let mut query = bulk(sql, chunk.len());
            for (id, unit) in chunk {
                query = query
                    .bind(*id)
                    .bind(unit.unit_type().as_str())
                    .bind(unit.identity())
                    .bind(row::to_json(&unit.fields()))
                    .bind(now.micros());
            }
            let made: HashSet<String> = query
                .fetch_all(self.on())
                .await?
                .iter()
                .map(|r| r.try_get("unit_id"))
                .collect::<Result<_, _>>()?;
            let made: Vec<_> = chunk.iter().filter(|(id, _)| made.contains(*id)).collect();
            let edges: Vec<_> = made
                .iter()
                .flat_map(|(id, unit)| {
                    edges(unit)
                        .into_iter()
                        .map(move |(role, child)| (*id, role, child))
                })
                .collect();
            self.insert_edges(&edges).await?;
        }
        Ok(())
    }

    async fn insert_edges(&mut self, edges: &[(&str, &str, String)]) -> Result<(), StoreError> {
        for chunk in edges.chunks(CHUNK) {
            let sql = format!(
                "INSERT INTO unit_edges (parent_unit_id, role, child_identity) VALUES {} \
                 ON CONFLICT (parent_unit_id, role, child_identity) DO NOTHING",
                rows_of(3, chunk.len())
            );
            let mut query = bulk(sql, chunk.len());
            for (parent, role, child) in chunk {
                query = query.bind(*parent).bind(*role).bind(child);
            }
            query.execute(self.on()).await?;
        }
        Ok(())
    }

    async fn associate(
        &mut self,
        repo: &RepositoryId,
        units: &[(&str, &Unit)],
        version: i64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for chunk in units.chunks(CHUNK) {
            let sql = format!(
                "INSERT INTO repository_units (repo_id, unit_id, added_in, created, updated, absent, made_from) \
                 VALUES {}",
                rows_of(7, chunk.len())
            );
            let mut query = bulk(sql, chunk.len());
            for (id, unit) in chunk {
                let selection = match unit {
                    Unit::ManifestList(list) => Some(&list.selection),
                    _ => None,
                };
                let absent = selection.map(|s| &s.absent).filter(|absent| !absent.is_empty());
                query = query
                    .bind(repo.as_str())
                    .bind(*id)
                    .bind(version)
                    .bind(now.micros())
                    .bind(now.micros())
                    .bind(absent.map(row::to_json))
                    .bind(selection.and_then(|s| s.made_from.as_ref()).map(row::to_json));
            }
            query.execute(self.on()).await?;
        }
        Ok(())
    }

    /// Gives lists that are there already the selections that they are to have. Returns whether the members that must
    /// be there are others for any.
    async fn select_members(
        &mut self,
        repo: &RepositoryId,
        wanted: &BTreeMap<String, &Unit>,
        known: &[&str],
        version: i64,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let lists = known.iter().filter_map(|id| match wanted.get(*id) {
            Some(unit @ Unit::ManifestList(list)) => Some((*id, *unit, &list.selection)),
            _ => None,
        });
        let lists: Vec<_> = lists.collect();
        if lists.is_empty() {
            return Ok(false);
        }
        let sql = "SELECT unit_id, absent, made_from FROM repository_units WHERE repo_id = $1 AND removed_in IS NULL \
                   AND (absent IS NOT NULL OR made_from IS NOT NULL)";
        let rows = sqlx::query(sql).bind(repo.as_str()).fetch_all(self.on()).await?;
        let before: HashMap<String, Selection> = rows
            .iter()
            .map(|r| Ok((r.try_get("unit_id")?, selection(r)?)))
            .collect::<Result<_, StoreError>>()?;
        let none = Selection::default();
        let mut others: Vec<(&str, &Unit)> = Vec::new();
        for (id, unit, now) in lists {
            let before = before.get(id).unwrap_or(&none);
            if now.absent != before.absent {
                others.push((id, unit));
            } else if now.made_from != before.made_from {
                let sql = "UPDATE repository_units SET made_from = $1 \
                           WHERE repo_id = $2 AND removed_in IS NULL AND unit_id = $3";
                sqlx::query(sql)
                    .bind(now.made_from.as_ref().map(row::to_json))
                    .bind(repo.as_str())
                    .bind(id)
                    .execute(self.on())
                    .await?;
            }
        }
        let ids: Vec<&str> = others.iter().map(|(id, _)| *id).collect();
        self.set_on_current(repo, "removed_in", version, &ids).await?;
        self.associate(repo, &others, version, now).await?;
        Ok(!others.is_empty())
    }

    /// Sets a column of the newest version's associations with these units.
    async fn set_on_current(
        &mut self,
        repo: &RepositoryId,
        column: &'static str,
        value: i64,
        unit_ids: &[&str],
    ) -> Result<(), StoreError> {
        for chunk in unit_ids.chunks(CHUNK) {
            let sql = format!(
                "UPDATE repository_units SET {column} = $1 WHERE repo_id = $2 AND removed_in IS NULL AND unit_id IN ({})",
                placeholders(3, chunk.len())
            );
            let mut query = bulk(sql, chunk.len()).bind(value).bind(repo.as_str());
            for id in chunk {
                query = query.bind(*id);
            }
            query.execute(self.on()).await?;
        }
        Ok(())
    }

    /// Tag units of the repository whose name is among the new ones but which are none of them.
    async fn replaced_tags(
        &mut self,
        repo: &RepositoryId,
        wanted: &BTreeMap<String, &Unit>,
    ) -> Result<Vec<String>, StoreError> {
        let names: HashSet<&str> = wanted
            .values()
            .filter_map(|u| {
                if let Unit::Tag(t) = u {
                    Some(t.name.as_str())
                } else {
                    None
                }
            })
            .collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let sql = "SELECT ru.unit_id, u.unit_type_id, u.fields FROM repository_units ru JOIN units u ON u.unit_id = ru.unit_id \
                   WHERE ru.repo_id = $1 AND ru.removed_in IS NULL AND u.unit_type_id = $2";
        let rows = sqlx::query(sql)
            .bind(repo.as_str())
            .bind(UnitType::DockerTag.as_str())
            .fetch_all(self.on())
            .await?;
        let mut replaced = Vec::new();
        for found in &rows {
            let id: String = found.try_get("unit_id")?;
            if let Unit::Tag(tag) = read_unit(found)?
                && names.contains(tag.name.as_str())
                && !wanted.contains_key(&id)
            {
                replaced.push(id);
            }
        }
        Ok(replaced)
    }

    async fn v1_tags_changed(
        &mut self,
        repo: &RepositoryId,
        version: i64,
        now: &[V1Tag],
    ) -> Result<bool, StoreError> {
        let sql = "SELECT scratchpad_tags FROM repository_versions WHERE repo_id = $1 AND number = $2";
        let found = sqlx::query(sql)
            .bind(repo.as_str())
            .bind(version)
            .fetch_optional(self.on())
            .await?;
        let before: Vec<V1Tag> = found
            .map(|r| row::json(&r, "scratchpad_tags"))
            .transpose()?
            .unwrap_or_default();
        let by_name = |tags: &[V1Tag]| -> HashMap<String, String> {
            tags.iter()
                .map(|t| (t.tag.to_string(), t.image_id.to_string()))
                .collect()
        };
        Ok(by_name(&before) != by_name(now))
    }
}

/// What a unit refers to: role and identity of the child.
fn edges(unit: &Unit) -> Vec<(&'static str, String)> {
    match unit {
        Unit::Blob(_) => Vec::new(),
        Unit::Image(image) => image
            .parent_id
            .iter()
            .map(|p| ("parent", p.to_string()))
            .collect(),
        Unit::Tag(tag) => vec![("manifest", tag.manifest_digest.to_string())],
        Unit::Manifest(m) => {
            let config = m.config_layer.iter().map(|d| ("config", d.to_string()));
            let layers = m.fs_layers.iter().map(|l| ("layer", l.blob_sum.to_string()));
            let subject = m.subject.iter().map(|d| ("subject", d.to_string()));
            config.chain(layers).chain(subject).collect()
        }
        Unit::ManifestList(l) => {
            let members = l.manifests.iter().map(|m| ("member", m.digest.to_string()));
            members
                .chain(l.subject.iter().map(|d| ("subject", d.to_string())))
                .collect()
        }
    }
}
