//! Units and their association with repositories, as searches read them.

use pulp_model::{
    RepositoryId, Timestamp, VersionNumber,
    unit::{Selection, Unit, UnitType},
};
use sqlx::{Row as _, any::AnyRow};

use crate::{
    Store, StoreError,
    engine::{assembled, placeholders},
    row,
};

/// A unit in a repository.
#[derive(Debug, Clone, PartialEq)]
pub struct Association {
    /// The repository.
    pub repo_id: RepositoryId,
    /// The unit's row id.
    pub unit_id: String,
    /// The unit.
    pub unit: Unit,
    /// When it came into the repository.
    pub created: Timestamp,
    /// When it was last brought in again.
    pub updated: Timestamp,
}

/// A unit by itself, in whatever repositories it is, or in none.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredUnit {
    /// The row id.
    pub unit_id: String,
    /// The unit.
    pub unit: Unit,
    /// When it was first brought in.
    pub created: Timestamp,
}

/// The row id of a unit: made of its type and identity, so that it needs no look-up.
pub fn unit_id(unit: &Unit) -> String {
    let digest = pulp_model::Digest::sha256(format!("{}\0{}", unit.unit_type(), unit.identity()));
    let hex = digest.hex();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..32]
    )
}

impl Store {
    /// What a repository holds in its newest version, by type and time of association; `types` empty means all.
    pub async fn associations(
        &self,
        repo: &RepositoryId,
        types: &[UnitType],
    ) -> Result<Vec<Association>, StoreError> {
        let filter = match types.len() {
            0 => String::new(),
            n => format!(" AND u.unit_type_id IN ({})", placeholders(2, n)),
        };
        let sql = format!(
            "SELECT ru.repo_id, ru.unit_id, u.unit_type_id, u.fields, ru.absent, ru.made_from, ru.created, ru.updated FROM repository_units ru \
             JOIN units u ON u.unit_id = ru.unit_id WHERE ru.repo_id = $1 AND ru.removed_in IS NULL{filter} \
             ORDER BY u.unit_type_id, ru.created, u.identity"
        );
        let mut query = sqlx::query(assembled(sql)).bind(repo.as_str());
        for unit_type in types {
            query = query.bind(unit_type.as_str());
        }
        query.fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// All units of a type, oldest first.
    pub async fn units_of_type(&self, unit_type: UnitType) -> Result<Vec<StoredUnit>, StoreError> {
        let sql = "SELECT unit_id, unit_type_id, fields, created FROM units WHERE unit_type_id = $1 \
                   ORDER BY created, unit_id";
        let rows = sqlx::query(sql)
            .bind(unit_type.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(read_stored).collect()
    }

    /// One unit by its row id, if it is of this type.
    pub async fn unit_by_id(
        &self,
        unit_type: UnitType,
        unit_id: &str,
    ) -> Result<Option<StoredUnit>, StoreError> {
        let sql = "SELECT unit_id, unit_type_id, fields, created FROM units WHERE unit_id = $1 AND unit_type_id = $2";
        let found = sqlx::query(sql)
            .bind(unit_id)
            .bind(unit_type.as_str())
            .fetch_optional(&self.pool)
            .await?;
        found.map(|r| read_stored(&r)).transpose()
    }

    /// Which repositories hold units of a type in their newest version: pairs of unit row id and repository.
    pub async fn memberships(&self, unit_type: UnitType) -> Result<Vec<(String, RepositoryId)>, StoreError> {
        let sql = "SELECT ru.unit_id, ru.repo_id FROM repository_units ru JOIN units u ON u.unit_id = ru.unit_id \
                   WHERE u.unit_type_id = $1 AND ru.removed_in IS NULL ORDER BY ru.unit_id, ru.repo_id";
        let rows = sqlx::query(sql)
            .bind(unit_type.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|r| Ok((r.try_get("unit_id")?, row::parsed(r, "repo_id")?)))
            .collect()
    }

    /// What a repository held in version `number`.
    pub async fn units_of_version(
        &self,
        repo: &RepositoryId,
        number: VersionNumber,
    ) -> Result<Vec<Unit>, StoreError> {
        let sql = "SELECT u.unit_type_id, u.fields, ru.absent, ru.made_from FROM repository_units ru JOIN units u ON u.unit_id = ru.unit_id \
                   WHERE ru.repo_id = $1 AND ru.added_in <= $2 AND (ru.removed_in IS NULL OR ru.removed_in > $2) \
                   ORDER BY u.unit_type_id, u.identity";
        let rows = sqlx::query(sql)
            .bind(repo.as_str())
            .bind(number.0)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(read_held_unit).collect()
    }
}

pub(crate) fn read_unit(found: &AnyRow) -> Result<Unit, StoreError> {
    let unit_type: String = found.try_get("unit_type_id")?;
    let unit_type = unit_type
        .parse::<UnitType>()
        .map_err(|()| StoreError::corrupt("units.unit_type_id", format!("unknown type {unit_type}")))?;
    Unit::from_fields(unit_type, row::json(found, "fields")?)
        .map_err(|e| StoreError::corrupt("units.fields", e))
}

/// A unit as a repository holds it.
pub(crate) fn read_held_unit(found: &AnyRow) -> Result<Unit, StoreError> {
    let mut unit = read_unit(found)?;
    if let Unit::ManifestList(list) = &mut unit {
        list.selection = selection(found)?;
    }
    Ok(unit)
}

/// What a filter of platforms made of a list in a repository.
pub(crate) fn selection(found: &AnyRow) -> Result<Selection, StoreError> {
    Ok(Selection {
        absent: row::optional_json(found, "absent")?.unwrap_or_default(),
        made_from: row::optional_json(found, "made_from")?,
    })
}

fn read_stored(found: &AnyRow) -> Result<StoredUnit, StoreError> {
    Ok(StoredUnit {
        unit_id: found.try_get("unit_id")?,
        unit: read_unit(found)?,
        created: row::instant(found, "created")?,
    })
}

fn read(found: &AnyRow) -> Result<Association, StoreError> {
    Ok(Association {
        repo_id: row::parsed(found, "repo_id")?,
        unit_id: found.try_get("unit_id")?,
        unit: read_held_unit(found)?,
        created: row::instant(found, "created")?,
        updated: row::instant(found, "updated")?,
    })
}
