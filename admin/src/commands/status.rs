//! `status`.

use super::{App, Stop};
use crate::output::Hidden;

pub(super) async fn status(app: &App) -> Result<(), Stop> {
    let document = app.client.get(&["status"], &[]).await?;
    app.screen.title("Status of the server");
    app.screen.document(&document, &[], Hidden::Show);
    app.screen.result(&document);
    Ok(())
}
