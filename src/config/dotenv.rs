//! `.env` of the working directory.

use super::ConfigError;

/// Reads `.env` of the working directory into the environment; what is set already stays. Not of a directory above it, where
/// others may write.
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

/// Which line of `.env` is wrong, by its number: it may hold a secret.
fn malformed(line: &str) -> String {
    let first = line.lines().next().unwrap_or_default().trim();
    let text = std::fs::read_to_string(".env").unwrap_or_default();
    let number = text.lines().position(|own| own.trim() == first);
    let which = number.map_or("a line of it".to_owned(), |before| format!("line {}", before + 1));
    format!("{which} is malformed; a value with spaces, quotes, # or $ needs single quotes")
}
