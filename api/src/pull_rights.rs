//! Who may pull from a repository while it is protected.

use axum::{
    Extension,
    extract::State,
    routing::{get, post},
};
use pulp_model::{Login, Puller, RobotName};
use pulp_store::Store;
use serde_json::{Map, Value, json};

use crate::{
    ApiError, App, Routes,
    auth::Caller,
    body::JsonObject,
    errors::Segments,
    fields::Fields,
    replies::{self, Reply},
    repositories,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/repositories/{repo}/pull_rights/", get(list))
        .at("/repositories/{repo}/actions/grant_pull/", post(grant))
        .at("/repositories/{repo}/actions/revoke_pull/", post(revoke))
}

fn view(puller: &Puller) -> Value {
    match puller {
        Puller::User(login) => json!({ "login": login }),
        Puller::Robot(name) => json!({ "robot": name }),
    }
}

async fn list(State(app): State<App>, Segments(repo): Segments<String>) -> Reply {
    let repo = repositories::find_id(&app.store, &repo).await?;
    let pullers = app.store.pullers(&repo).await?;
    let views: Vec<_> = pullers.iter().map(view).collect();
    Ok(replies::ok(&views.into()))
}

/// `{"login": …}` or `{"robot": …}`.
fn puller(body: Map<String, Value>) -> Result<Puller, ApiError> {
    let mut fields = Fields::new(body);
    let login: Option<Login> = fields.parsed("login");
    let robot: Option<RobotName> = fields.parsed("robot");
    fields.finish_strict()?;
    match (login, robot) {
        (Some(login), None) => Ok(Puller::User(login)),
        (None, Some(name)) => Ok(Puller::Robot(name)),
        (None, None) => Err(ApiError::Missing(vec!["login".to_owned(), "robot".to_owned()])),
        (Some(_), Some(_)) => Err(ApiError::invalid("robot", "give a login or a robot, not both")),
    }
}

/// Refuses who isn't there: a right for nobody would be one for whoever takes the name later.
async fn must_exist(store: &Store, puller: &Puller) -> Result<(), ApiError> {
    let (there, property) = match puller {
        Puller::User(login) => (store.user(login).await?.is_some(), "login"),
        Puller::Robot(name) => (store.robot(name).await?.is_some(), "robot"),
    };
    if there {
        return Ok(());
    }
    Err(ApiError::invalid(property, format!("there is no {puller}")))
}

async fn grant(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(segment): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let repo = repositories::find_id(&app.store, &segment).await?;
    let puller = puller(body)?;
    must_exist(&app.store, &puller).await?;
    let mut tx = app.store.begin().await?;
    if !tx.grant_pull(&repo, &puller).await? {
        drop(tx);
        // Deleted this very moment.
        must_exist(&app.store, &puller).await?;
        repositories::find_id(&app.store, &segment).await?;
        return Err(ApiError::Internal(format!(
            "{puller} can't be given a right on {repo}"
        )));
    }
    tx.commit().await?;
    tracing::info!(%repo, %puller, by = %caller.login, "may pull");
    Ok(replies::ok(&Value::Null))
}

async fn revoke(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(repo): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let repo = repositories::find_id(&app.store, &repo).await?;
    let puller = puller(body)?;
    let mut tx = app.store.begin().await?;
    let revoked = tx.revoke_pull(&repo, &puller).await?;
    tx.commit().await?;
    if revoked {
        tracing::info!(%repo, %puller, by = %caller.login, "may pull no more");
    }
    Ok(replies::ok(&Value::Null))
}
