//! Opens the table of jobs. A damaged file is set aside, and whatever can still be read is copied into a new one.

use std::path::Path;

use jiff::Timestamp;

use super::store::{FILE_NAME, JobStore, StoreError, salvage};
use crate::files::{free_name, unless_absent};
use crate::sqlite::files_of;

/// Holds what could be read of a damaged table until it takes that table's place.
const REPAIRED: &str = "state.db.mended";

/// Opens the table in a directory, or creates it. If it is damaged, it is replaced.
pub(super) async fn open(directory: &Path, now: Timestamp) -> Result<JobStore, StoreError> {
    let path = directory.join(FILE_NAME);
    let repaired = directory.join(REPAIRED);
    if !path.exists() {
        if repaired.exists() {
            // A crash came after the damaged table was moved, perhaps before its log was.
            remove_all(&path)?;
            move_all(&repaired, &path)?;
        }
        return JobStore::connect(&path).await;
    }
    match JobStore::connect_checked(&path).await {
        Ok(store) => {
            remove_all(&repaired)?;
            Ok(store)
        }
        Err(error) if error.is_damage() => {
            let set_aside = free_name(|suffix| {
                directory.join(format!("{FILE_NAME}.damaged-{}{suffix}", now.as_second()))
            });
            let (records, pause) = salvage(&path).await;
            // The new table is complete before the damaged one is moved.
            remove_all(&repaired)?;
            let store = JobStore::connect(&repaired).await?;
            for (job, scope) in &records {
                if !store.insert(job, scope.as_deref()).await? {
                    // Another job has its idempotency key: better stored without the key than not at all.
                    store.insert(job, None).await?;
                }
            }
            if let Some(pause) = pause {
                store.set_pause(&pause).await?;
            }
            // Closing the last connection removes its log.
            store.close().await;
            move_all(&path, &set_aside)?;
            move_all(&repaired, &path)?;
            tracing::error!(
                set_aside = %set_aside.display(), salvaged = records.len(),
                "the table of jobs was damaged; it was set aside, and the records that could be read were kept"
            );
            JobStore::connect(&path).await
        }
        Err(error) => Err(error),
    }
}

fn move_all(table: &Path, to: &Path) -> std::io::Result<()> {
    let files = files_of(table).into_iter().zip(files_of(to));
    files.into_iter().try_for_each(|(from, to)| unless_absent(std::fs::rename(from, to)))
}

fn remove_all(table: &Path) -> std::io::Result<()> {
    files_of(table).iter().try_for_each(|file| unless_absent(std::fs::remove_file(file)))
}

#[cfg(test)]
mod tests {
    use super::super::model::JobState;
    use super::super::testing::job;
    use super::*;

    #[tokio::test]
    async fn what_was_salvaged_is_there_also_after_a_crash_between_two_renames() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), Timestamp::UNIX_EPOCH).await.unwrap();
        let queued = job(JobState::Queued);
        store.insert(&queued, Some("key")).await.unwrap();
        store.close().await;
        move_all(&directory.path().join(FILE_NAME), &directory.path().join(REPAIRED)).unwrap();
        let store = open(directory.path(), Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(store.known("key").await.unwrap(), Some(queued));
    }

    #[tokio::test]
    async fn each_damaged_table_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        for copies in 0..3 {
            let kept = std::fs::read_dir(directory.path()).unwrap().flatten();
            let kept =
                kept.filter(|file| file.file_name().to_string_lossy().starts_with("state.db.damaged-"));
            assert_eq!(kept.count(), copies);
            std::fs::write(directory.path().join(FILE_NAME), "no database").unwrap();
            open(directory.path(), now).await.unwrap().close().await;
        }
    }
}
