//! `/users/`: who may log in.

use axum::{extract::State, routing::get};
use pulp_model::Login;
use pulp_store::{
    Store, StoreError,
    users::{SUPER_USERS, User},
};

use crate::{
    ApiError, App, Routes,
    body::JsonObject,
    errors::Segments,
    fields::Fields,
    password,
    replies::{self, Reply},
    views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/users/", get(list).post(create))
        .at("/users/{login}/", get(read).put(update).delete(delete))
}

/// What [`ensure_first_user`] found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstUser {
    /// There was a super-user already; nothing was changed.
    Existing,
    /// One was made, with this password. Tell it to the operator once; only its hash is kept.
    Created {
        /// The password, given or generated.
        password: String,
    },
}

/// Makes a super-user where there is none, so that somebody can log in to a new installation. Without a password
/// one is generated: there is no default one that everybody knows.
pub async fn ensure_first_user(
    store: &Store,
    login: &str,
    password: Option<String>,
) -> Result<FirstUser, ApiError> {
    if store.users().await?.iter().any(User::is_super_user) {
        return Ok(FirstUser::Existing);
    }
    let login: Login = login
        .parse()
        .map_err(|e| ApiError::invalid("login", format!("{e}")))?;
    let password = match password {
        Some(password) if password.is_empty() => {
            return Err(ApiError::invalid(
                "password",
                "the password is empty; give another, or none to have one made",
            ));
        }
        Some(password) => password,
        None => password::generate()?,
    };
    let user = User {
        name: login.to_string(),
        login,
        password_hash: password::hash(&password).await?,
        roles: vec![SUPER_USERS.to_owned()],
    };
    let mut tx = store.begin().await?;
    match tx.create_user(&user).await {
        Ok(()) => {}
        // Another process was faster, and knows the password.
        Err(StoreError::Duplicate(_)) => return Ok(FirstUser::Existing),
        Err(other) => return Err(other.into()),
    }
    tx.commit().await?;
    Ok(FirstUser::Created { password })
}

async fn find(store: &Store, login: &str) -> Result<User, ApiError> {
    let found = match login.parse() {
        Ok(login) => store.user(&login).await?,
        Err(_) => None,
    };
    found.ok_or_else(|| unknown(login))
}

fn unknown(login: &str) -> ApiError {
    ApiError::NotFound {
        kind: "user_id",
        id: login.to_owned(),
    }
}

async fn list(State(app): State<App>) -> Reply {
    let users = app.store.users().await?;
    let views: Vec<_> = users.iter().map(views::user).collect();
    Ok(replies::ok(&views.into()))
}

async fn read(State(app): State<App>, Segments(login): Segments<String>) -> Reply {
    let user = find(&app.store, &login).await?;
    Ok(replies::ok(&views::user(&user)))
}

fn checked_password(fields: &mut Fields) -> String {
    let password = fields.required_text("password");
    if password.is_empty() {
        fields.refuse("password", "the password is empty");
    }
    password
}

/// Makes a user. `roles` is ours: Pulp 2 gave roles by calls of their own, which are not there yet.
async fn create(State(app): State<App>, JsonObject(body): JsonObject) -> Reply {
    let mut fields = Fields::new(body);
    let login: Option<Login> = fields.required_parsed("login");
    let password = checked_password(&mut fields);
    let name = fields.text("name");
    let roles = fields.array("roles").unwrap_or_default();
    if roles.iter().any(|role| role != SUPER_USERS) {
        fields.refuse(
            "roles",
            format!("roles may hold {SUPER_USERS:?} only; there are no others yet"),
        );
    }
    fields.finish_strict()?;
    let Some(login) = login else {
        return Err(ApiError::Missing(vec!["login".to_owned()]));
    };
    let user = User {
        name: name.unwrap_or_else(|| login.to_string()),
        login,
        password_hash: password::hash(&password).await?,
        roles: if roles.is_empty() {
            Vec::new()
        } else {
            vec![SUPER_USERS.to_owned()]
        },
    };
    let mut tx = app.store.begin().await?;
    tx.create_user(&user).await.map_err(|e| match e {
        StoreError::Duplicate(_) => ApiError::Duplicate {
            id: user.login.to_string(),
        },
        other => other.into(),
    })?;
    tx.commit().await?;
    tracing::info!(login = %user.login, "user created");
    let mut view = views::user(&user);
    view["id"] = view["_id"]["$oid"].clone();
    Ok(replies::created(&view))
}

/// Changes a password, which ends the user's sessions.
async fn update(
    State(app): State<App>,
    Segments(login): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let user = find(&app.store, &login).await?;
    let mut fields = Fields::new(body);
    if !fields.has("delta") {
        fields.lacks("delta");
    }
    let mut delta = Fields::new(fields.object("delta").unwrap_or_default());
    fields.finish_strict()?;
    let password = checked_password(&mut delta);
    delta.finish_strict()?;
    let hash = password::hash(&password).await?;
    let mut tx = app.store.begin().await?;
    if !tx.set_password(&user.login, &hash).await? {
        // Deleted this very moment.
        return Err(unknown(&login));
    }
    tx.commit().await?;
    tracing::info!(login = %user.login, "password changed");
    Ok(replies::ok(&views::user(&user)))
}

/// Deletes a user with sessions and rights. The last super-user stays: nobody could log in to make another.
async fn delete(State(app): State<App>, Segments(login): Segments<String>) -> Reply {
    let user = find(&app.store, &login).await?;
    let mut tx = app.store.begin().await?;
    if tx.is_last_super_user(&user.login).await? {
        return Err(ApiError::invalid(
            "login",
            format!("{login} is the last member of {SUPER_USERS}; make another one first"),
        ));
    }
    tx.delete_user(&user.login).await?;
    tx.commit().await?;
    tracing::info!(login = %user.login, "user deleted");
    Ok(replies::ok(&serde_json::Value::Null))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::testing::Api;

    #[tokio::test]
    async fn the_first_user_is_made_once_with_a_password_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/pulp.db", folder.path().display());
        let store = Store::connect(&url, 2).await.unwrap();
        store.migrate().await.unwrap();
        let FirstUser::Created { password } = ensure_first_user(&store, "admin", None).await.unwrap() else {
            panic!("a new one")
        };
        assert_eq!(password.len(), 24);
        let user = store.user(&"admin".parse().unwrap()).await.unwrap().unwrap();
        assert!(password::verify(&password, &user.password_hash).await.unwrap());
        let again = ensure_first_user(&store, "root", Some("x".to_owned()))
            .await
            .unwrap();
        assert_eq!(again, FirstUser::Existing);
        assert_eq!(store.users().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn users_are_made_listed_and_never_show_a_password() {
        let api = Api::new().await;
        let body = json!({"login": "ann", "password": "s3cret", "name": "Ann", "roles": ["super-users"]});
        let reply = api.post("/users/", &body).await;
        assert_eq!(reply.status, StatusCode::CREATED);
        assert_eq!(reply.header("location"), "/pulp/api/v2/users/ann/");
        assert_eq!(reply.body["id"], reply.body["_id"]["$oid"]);
        let list = api.get("/users/").await.body;
        assert_eq!(list[1]["login"], "ann");
        assert_eq!(list[1]["roles"], json!(["super-users"]));
        assert!(!list.to_string().contains("argon2"), "{list}");
        assert_eq!(
            api.basic("ann", "s3cret", "DELETE", "/content/uploads/x/")
                .await
                .status,
            StatusCode::OK
        );

        for (body, status, code) in [
            (json!({"login": "ann", "password": "x"}), 409, "PLP0018"),
            (json!({"login": "bob"}), 400, "PLP0016"),
            (json!({"login": "b b", "password": "x"}), 400, "PLP0015"),
            (json!({"login": "bob", "password": ""}), 400, "PLP0015"),
            (
                json!({"login": "bob", "password": "x", "roles": ["kings"]}),
                400,
                "PLP0015",
            ),
            (json!({"login": "bob", "password": "x", "age": 5}), 400, "PLP0017"),
        ] {
            let reply = api.post("/users/", &body).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (status, code), "{body}");
        }
        assert_eq!(api.get("/users/nobody/").await.status, StatusCode::NOT_FOUND);
        let reply = api
            .put("/users/ann/", &json!({"delta": {"password": "x", "roles": []}}))
            .await;
        assert_eq!(reply.body["unsupported_property_names"], json!(["roles"]));
    }
}
