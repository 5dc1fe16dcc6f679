//! The `.env` file of the working directory.

use super::ConfigError;

/// Loads the working directory's `.env` into the environment, without overriding what is already set. Parent directories, where
/// others may write, are not searched.
pub fn load_dotenv() -> Result<(), ConfigError> {
    match dotenvy::from_path(".env") {
        Err(error) if !error.not_found() => {
            // The error quotes the line, which may hold a secret.
            let wrong = match error {
                dotenvy::Error::Io(error) => format!("it cannot be read: {error}"),
                dotenvy::Error::LineParse(line, _) => malformed(&line),
                error => error.to_string(),
            };
            Err(ConfigError(vec![format!(".env: {wrong}")]))
        }
        _ => Ok(()),
    }
}

/// Names the malformed line of `.env` by its number only: it may hold a secret.
fn malformed(line: &str) -> String {
    let first = line.lines().next().unwrap_or_default().trim();
    let text = std::fs::read_to_string(".env").unwrap_or_default();
    // The error may quote the value only.
    let value = |own: &str| own.split_once('=').is_some_and(|(_, value)| value.trim() == first);
    let is_it = |own: &str| !own.trim().starts_with('#') && (own.trim() == first || value(own));
    let number = text.lines().position(|own| !first.is_empty() && is_it(own));
    let which = number.map_or("a line".to_owned(), |before| format!("line {}", before + 1));
    format!(
        "{which} is malformed: it must be NAME=value, and a value with spaces, quotes, # or $ needs single quotes"
    )
}
