//! `/robots/`: credentials of programs that pull.

use axum::{
    Extension,
    extract::State,
    routing::{get, post},
};
use pulp_model::{Puller, RobotName, Timestamp};
use pulp_store::{Store, StoreError, robots::Robot};
use serde_json::{Value, json};

use crate::{
    ApiError, App, PREFIX, Routes,
    auth::Caller,
    body::{JsonObject, UnusedJsonObject},
    errors::Segments,
    fields::Fields,
    password,
    replies::{self, Reply},
    tokens::secret_hash,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/robots/", get(list).post(create))
        .at("/robots/{name}/", get(read).delete(delete))
        .at("/robots/{name}/actions/renew_secret/", post(renew_secret))
}

async fn find(store: &Store, name: &str) -> Result<Robot, ApiError> {
    let found = match name.parse() {
        Ok(name) => store.robot(&name).await?,
        Err(_) => None,
    };
    found.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> ApiError {
    ApiError::NotFound {
        kind: "robot_id",
        id: name.to_owned(),
    }
}

/// A robot; never its secret.
fn view(robot: &Robot) -> Value {
    json!({
        "name": robot.name,
        "login": Puller::Robot(robot.name.clone()).to_string(),
        "description": robot.description,
        "created": robot.created,
        "expires": robot.expires,
        "_href": format!("{PREFIX}/robots/{}/", robot.name),
    })
}

async fn list(State(app): State<App>) -> Reply {
    let robots = app.store.robots().await?;
    let views: Vec<_> = robots.iter().map(view).collect();
    Ok(replies::ok(&views.into()))
}

/// With the repositories that it may pull from.
async fn read(State(app): State<App>, Segments(name): Segments<String>) -> Reply {
    let robot = find(&app.store, &name).await?;
    let pullable = app.store.pullable(&Puller::Robot(robot.name.clone())).await?;
    let mut view = view(&robot);
    view["repositories"] = json!(pullable);
    Ok(replies::ok(&view))
}

/// Makes a robot. Its secret is told in this answer and never again.
async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonObject(body): JsonObject,
) -> Reply {
    let mut fields = Fields::new(body);
    let name: Option<RobotName> = fields.required_parsed("name");
    let description = fields.text("description").unwrap_or_default();
    let expires = fields.text("expires").and_then(|text| {
        let instant: Option<Timestamp> = serde_json::from_value(json!(text)).ok();
        if instant.is_none() {
            let reason = format!("expires is {text:?}; give an instant such as 2030-01-31T00:00:00Z");
            fields.refuse("expires", reason);
        }
        instant
    });
    fields.finish_strict()?;
    let Some(name) = name else {
        return Err(ApiError::Missing(vec!["name".to_owned()]));
    };
    let secret = password::generate()?;
    let mut tx = app.store.begin().await?;
    tx.create_robot(&name, &description, &secret_hash(&secret), expires)
        .await
        .map_err(|e| match e {
            StoreError::Duplicate(_) => ApiError::Duplicate { id: name.to_string() },
            other => other.into(),
        })?;
    tx.commit().await?;
    tracing::info!(robot = %name, by = %caller.login, "robot created");
    let mut view = view(&find(&app.store, name.as_str()).await?);
    view["secret"] = json!(secret);
    Ok(replies::created(&view))
}

/// Gives a robot another secret; the one before counts for nothing from now on.
async fn renew_secret(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(name): Segments<String>,
    _: UnusedJsonObject,
) -> Reply {
    let robot = find(&app.store, &name).await?;
    let secret = password::generate()?;
    let mut tx = app.store.begin().await?;
    if !tx.set_robot_secret(&robot.name, &secret_hash(&secret)).await? {
        return Err(unknown(&name));
    }
    tx.commit().await?;
    tracing::info!(robot = %robot.name, by = %caller.login, "the robot's secret was renewed");
    let mut view = view(&robot);
    view["secret"] = json!(secret);
    Ok(replies::ok(&view))
}

async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(name): Segments<String>,
) -> Reply {
    let robot = find(&app.store, &name).await?;
    let mut tx = app.store.begin().await?;
    tx.delete_robot(&robot.name).await?;
    tx.commit().await?;
    tracing::info!(robot = %robot.name, by = %caller.login, "robot deleted");
    Ok(replies::ok(&Value::Null))
}
