//! Storing the sessions of a list page, finding those already stored, and probing sessions for days in which they were not
//! listed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

use sqlx::sqlite::SqliteConnection;

use super::pages::unknown_members;
use super::set_aside::set_aside;
use super::settled::Settled;
use super::statements::json;
use super::writer::{Effect, ListedSession, PagePosition};
use super::{CaptureError, ListId, PageToken, RangeId, Tx, UnitId, WindowId};
use crate::days::DateRange;
use crate::files::unless_absent;
use crate::sqlite;

/// Zoom's ids of all sessions, in a throw-away database beside the capture, built from the sessions when needed. An index in
/// the capture would change at random places: nearly a page for each new session, written to the log and from there to the
/// capture. This file is written back by the operating system now and then.
#[derive(Debug)]
pub(super) struct KnownSessions {
    path: PathBuf,
    ready: bool,
}

impl KnownSessions {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, ready: false }
    }

    /// Builds it unless it exists. Must not be called within a transaction; if this or a later transaction fails, the
    /// connection is no longer usable.
    pub(super) async fn make_ready(&mut self, connection: &mut SqliteConnection) -> Result<(), CaptureError> {
        if self.ready {
            return Ok(());
        }
        // It starts empty, even if a crash left one behind.
        unless_absent(std::fs::remove_file(&self.path))?;
        sqlite::make_private(&self.path)?;
        let path = self.path.to_string_lossy().into_owned();
        sqlx::query("ATTACH ? AS known").bind(path).execute(&mut *connection).await?;
        // Though unlinked, it lives as long as it is attached.
        std::fs::remove_file(&self.path)?;
        sqlx::raw_sql(
            "PRAGMA known.journal_mode = OFF; PRAGMA known.synchronous = OFF; PRAGMA known.locking_mode = EXCLUSIVE;
             PRAGMA known.cache_size = -500;
             CREATE TABLE known.sessions (zoom_id TEXT PRIMARY KEY, id INTEGER NOT NULL) STRICT, WITHOUT ROWID;
             INSERT INTO known.sessions SELECT zoom_id, id FROM main.sessions;",
        )
        .execute(&mut *connection)
        .await?;
        self.ready = true;
        Ok(())
    }
}

/// Stores a list page: sessions, and a unit with its range for each that is new in that window.
pub(super) async fn list_page(
    tx: &mut Tx<'_>,
    page: &PagePosition<ListId>,
    next: Option<&PageToken>,
    sessions: &[ListedSession],
) -> Result<Effect, CaptureError> {
    let window: WindowId = sqlx::query_scalar("SELECT window FROM lists WHERE id = ?")
        .bind(page.chain)
        .fetch_one(&mut **tx)
        .await?;
    // In case the list began again. The sessions listed by the earlier page stay.
    sqlx::query("DELETE FROM unknown_members WHERE list = ? AND seq = ?")
        .bind(page.chain)
        .bind(page.seq)
        .execute(&mut **tx)
        .await?;
    let mut effect = Effect::default();
    if !sessions.is_empty() {
        effect = list_sessions(tx, window, sessions).await?;
    }
    let unknown = (Some(page.chain), None, page.seq, &page.unknown[..]);
    unknown_members(tx, std::iter::once(unknown)).await?;
    sqlx::query("UPDATE lists SET pages = ?, next_token = ?, token_at = ? WHERE id = ?")
        .bind(page.seq + 1)
        .bind(next.map(|next| &next.token))
        .bind(next.map(|next| next.at.to_string()))
        .bind(page.chain)
        .execute(&mut **tx)
        .await?;
    Ok(effect)
}

async fn list_sessions(
    tx: &mut Tx<'_>,
    window: WindowId,
    sessions: &[ListedSession],
) -> Result<Effect, CaptureError> {
    // Of a session that appears twice on a page the last entry counts.
    let mut places = HashMap::new();
    let mut listed: Vec<&ListedSession> = Vec::with_capacity(sessions.len());
    for session in sessions {
        match places.entry(&session.zoom_id[..]) {
            Entry::Occupied(place) => listed[*place.get()] = session,
            Entry::Vacant(place) => {
                place.insert(listed.len());
                listed.push(session);
            }
        }
    }
    let zoom_ids: Vec<&str> = listed.iter().map(|session| &session.zoom_id[..]).collect();
    let known: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT listed.key, k.id FROM json_each(?) AS listed CROSS JOIN known.sessions k ON k.zoom_id = listed.value",
    )
    .bind(json(&zoom_ids))
    .fetch_all(&mut **tx)
    .await?;
    let known: HashMap<usize, i64> = known.into_iter().map(|(key, id)| (key as usize, id)).collect();
    let mut last: i64 =
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM sessions").fetch_one(&mut **tx).await?;
    let (mut there, mut new) = (Vec::new(), Vec::new());
    for (index, session) in listed.into_iter().enumerate() {
        if let Some(id) = known.get(&index) {
            there.push((*id, session));
        } else {
            last += 1;
            new.push((last, session));
        }
    }
    insert_new(tx, &new).await?;
    list_again(tx, window, &there).await?;
    let ids: Vec<i64> = there.iter().chain(&new).map(|(id, _)| *id).collect();
    let known = &ids[..there.len()];
    let before = Settled::of(tx, known).await?;
    let mut effect = list_units(tx, window, &ids).await?;
    effect.settled = Settled::of(tx, known).await? - before;
    effect.new_sessions = new.len() as u64;
    Ok(effect)
}

async fn insert_new(tx: &mut Tx<'_>, new: &[(i64, &ListedSession)]) -> Result<(), CaptureError> {
    let Some(first) = new.first() else { return Ok(()) };
    let rows: Vec<_> = new.iter().map(|(id, session)| (id, &session.zoom_id, &session.info)).collect();
    sqlx::query(
        "INSERT INTO sessions (id, zoom_id, info)
         SELECT s.value ->> 0, s.value ->> 1, s.value ->> 2 FROM json_each(?) AS s",
    )
    .bind(json(&rows))
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "INSERT INTO known.sessions (id, zoom_id) SELECT id, zoom_id FROM main.sessions WHERE id >= ?",
    )
    .bind(first.0)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Updates sessions that are already stored. A session's info is that of the latest window that lists it; nothing is written if
/// it stays the same.
async fn list_again(
    tx: &mut Tx<'_>,
    window: WindowId,
    there: &[(i64, &ListedSession)],
) -> Result<(), CaptureError> {
    if there.is_empty() {
        return Ok(());
    }
    let infos: Vec<_> = there.iter().map(|(id, session)| (id, &session.info)).collect();
    sqlx::query(
        "UPDATE sessions SET info = listed.value ->> 1 FROM json_each(?) AS listed
         WHERE sessions.id = listed.value ->> 0 AND sessions.info <> listed.value ->> 1
         AND NOT EXISTS (SELECT 1 FROM units u WHERE u.session = sessions.id AND u.listed AND u.window > ?)",
    )
    .bind(json(&infos))
    .bind(window)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Adds a unit with its range for each of these sessions that is not listed in the window yet.
async fn list_units(tx: &mut Tx<'_>, window: WindowId, sessions: &[i64]) -> Result<Effect, CaptureError> {
    let units: Vec<(UnitId, bool)> = sqlx::query_as(
        "INSERT INTO units (session, window, listed)
         SELECT value, ?2, 1 FROM json_each(?1) WHERE true
         ON CONFLICT (session, window) DO UPDATE SET listed = 1, state = 'pending' WHERE listed = 0
         RETURNING id, EXISTS (SELECT 1 FROM ranges WHERE unit = units.id)",
    )
    .bind(json(&sessions))
    .bind(window)
    .fetch_all(&mut **tx)
    .await?;
    let mut effect = Effect::default();
    if units.is_empty() {
        return Ok(effect);
    }
    // A unit may have been probed for some days before it was listed: the whole window replaces those.
    let probed: Vec<UnitId> = units.iter().filter(|(_, probed)| *probed).map(|(id, _)| *id).collect();
    let mut replaced: Vec<RangeId> = Vec::new();
    if !probed.is_empty() {
        replaced = sqlx::query_scalar("SELECT id FROM ranges WHERE unit IN (SELECT value FROM json_each(?))")
            .bind(json(&probed))
            .fetch_all(&mut **tx)
            .await?;
    }
    let all: Vec<UnitId> = units.iter().map(|(id, _)| *id).collect();
    sqlx::query(
        "INSERT INTO ranges (unit, window, first_day, last_day)
         SELECT u.value, w.idx, w.first_day, w.last_day FROM json_each(?) u JOIN windows w ON w.idx = ?",
    )
    .bind(json(&all))
    .bind(window)
    .execute(&mut **tx)
    .await?;
    // Deleted last, so that the new ranges do not reuse their numbers, which have been handed out.
    if !replaced.is_empty() {
        effect.items = set_aside(tx, &replaced).await?;
        sqlx::query("DELETE FROM ranges WHERE id IN (SELECT value FROM json_each(?))")
            .bind(json(&replaced))
            .execute(&mut **tx)
            .await?;
    }
    effect.newly_listed = all.len() as u64;
    effect.new_units = (all.len() - probed.len()) as u64;
    Ok(effect)
}

/// Adds ranges over these days for those of these sessions that the window does not list.
pub(super) async fn probe_days(
    tx: &mut Tx<'_>,
    window: WindowId,
    days: DateRange,
    (first, last): (i64, i64),
) -> Result<Effect, CaptureError> {
    let sessions: Vec<i64> = (first..=last).collect();
    let before = Settled::of(tx, &sessions).await?;
    let probed = sqlx::query(
        "INSERT INTO units (session, window, listed) SELECT id, ?, 0 FROM sessions WHERE id BETWEEN ? AND ?
         ON CONFLICT (session, window) DO NOTHING",
    )
    .bind(window)
    .bind(first)
    .bind(last)
    .execute(&mut **tx)
    .await?;
    // Days that a unit covers already are not requested twice: a listed session has a range over the whole window, and others
    // may have been probed before, in one range or in parts. Most units cover none of the days, or all in one range.
    for statement in [
        "INSERT INTO ranges (unit, window, first_day, last_day)
         SELECT u.id, u.window, ?2, ?3 FROM units u
         WHERE u.window = ?1 AND u.listed = 0 AND u.session BETWEEN ?4 AND ?5
         AND NOT EXISTS (SELECT 1 FROM ranges r WHERE r.unit = u.id AND r.first_day <= ?3 AND r.last_day >= ?2)",
        "INSERT INTO ranges (unit, window, first_day, last_day)
         WITH RECURSIVE days(day) AS
             (SELECT ?2 UNION ALL SELECT date(day, '+1 day') FROM days WHERE day < ?3)
         SELECT u.id, u.window, day, day FROM units u CROSS JOIN days
         WHERE u.window = ?1 AND u.listed = 0 AND u.session BETWEEN ?4 AND ?5
         AND NOT EXISTS (SELECT 1 FROM ranges r WHERE r.unit = u.id AND r.first_day <= ?2 AND r.last_day >= ?3)
         AND NOT EXISTS (SELECT 1 FROM ranges r WHERE r.unit = u.id AND r.first_day <= day AND r.last_day >= day)",
    ] {
        sqlx::query(statement)
            .bind(window)
            .bind(days.from.to_string())
            .bind(days.to.to_string())
            .bind(first)
            .bind(last)
            .execute(&mut **tx)
            .await?;
    }
    // Units that were settled may have gained a range.
    sqlx::query(
        "UPDATE units SET state = 'pending'
         WHERE window = ? AND listed = 0 AND session BETWEEN ? AND ? AND state <> 'pending'
         AND EXISTS (SELECT 1 FROM ranges r WHERE r.unit = units.id AND r.state = 'pending')",
    )
    .bind(window)
    .bind(first)
    .bind(last)
    .execute(&mut **tx)
    .await?;
    let settled = Settled::of(tx, &sessions).await? - before;
    Ok(Effect { new_units: probed.rows_affected(), settled, ..Effect::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{empty_page, failed, list, planned, position};
    use crate::capture::writer::Items;
    use crate::capture::{Change, Effect, Kind, MessagesPage, PageToken, Place, Restored, Segment, Then};
    use jiff::civil::date;

    fn days(month: i8) -> DateRange {
        DateRange::new(date(2026, month, 1), date(2026, month, 28))
    }

    fn april(from: i8, to: i8) -> DateRange {
        DateRange::new(date(2026, 4, from), date(2026, 4, to))
    }

    #[tokio::test]
    async fn unknown_members_of_a_list_that_begins_again_are_kept_once() {
        let (_directory, location, writer) = planned(&[days(3)]).await;
        for seq in [0, 1, 2, 0, 1, 2] {
            let unknown = vec![("x".to_owned(), seq.to_string())];
            let page = PagePosition { unknown, ..position(ListId(1), seq) };
            writer.commit(Change::ListPage { page, next: None, sessions: Vec::new() }).await.unwrap();
        }
        let mut reader = location.open_reader().await.unwrap();
        let all = sqlx::query_scalar("SELECT value FROM unknown_members ORDER BY seq");
        let all: Vec<String> = all.fetch_all(&mut reader.connection).await.unwrap();
        assert_eq!(all, ["0", "1", "2"]);
        reader.close().await;
        writer.close().await;
    }

    /// An id must be found again as it was stored, or its session would have no unit.
    #[tokio::test]
    async fn every_listed_session_has_a_unit_whatever_its_id() {
        let (_directory, location, writer) = planned(&[days(3), days(4)]).await;
        let ids =
            ["a", "A", "7", "7.0", "null", "a\0b", "a\0c", "\0", "\"\\", "\u{7f}", "größe 漢😀", " a", "%"];
        for number in [2, 1] {
            let effect = writer.commit(list(number, &ids)).await.unwrap();
            let new = if number == 2 { ids.len() as u64 } else { 0 };
            assert_eq!((effect.new_sessions, effect.new_units), (new, ids.len() as u64));
        }
        let mut reader = location.open_reader().await.unwrap();
        let stored = reader.session_infos(0, 99).await.unwrap();
        assert_eq!(stored.iter().map(|(_, id, _)| &id[..]).collect::<Vec<_>>(), ids);
        let ranges = reader.pending_ranges(WindowId(1), RangeId::default(), 99).await.unwrap();
        assert_eq!(ranges.iter().map(|range| &range.session_id[..]).collect::<Vec<_>>(), ids);
        writer.close().await;
    }

    /// Lists are read at the same time: which is stored last says nothing.
    #[tokio::test]
    async fn what_is_known_of_a_session_is_what_the_latest_window_that_lists_it_says() {
        let (_directory, location, writer) = planned(&[days(3), days(4)]).await;
        let mut reader = location.open_reader().await.unwrap();
        for (number, told, expected) in
            [(1, "early", "early"), (2, "late", "late"), (1, "again", "late"), (2, "later", "later")]
        {
            let sessions = vec![ListedSession { zoom_id: "a".to_owned(), info: told.to_owned() }];
            let page = position(ListId(number), 0);
            writer.commit(Change::ListPage { page, next: None, sessions }).await.unwrap();
            assert_eq!(reader.session_infos(0, 9).await.unwrap()[0].2, expected);
        }
        reader.close().await;
        writer.close().await;
    }

    /// Or a list that has shifted would not be read again.
    #[tokio::test]
    async fn a_session_that_was_only_probed_in_a_window_is_new_to_its_list() {
        let (_directory, _, writer) = planned(&[days(3), days(4)]).await;
        writer.commit(list(1, &["a"])).await.unwrap();
        let probe = Change::ProbeDays { window: WindowId(1), days: april(3, 3), sessions: (1, 9) };
        writer.commit(probe).await.unwrap();
        for newly_listed in [1, 0] {
            let effect = writer.commit(list(2, &["a"])).await.unwrap();
            assert_eq!((effect.newly_listed, effect.new_units), (newly_listed, 0));
        }
        writer.close().await;
    }

    /// However it was listed before: in another window, on the same page, in a commit that failed, by another process.
    #[tokio::test]
    async fn a_session_is_one_session_however_often_it_is_listed() {
        let (directory, location, writer) = planned(&[days(3), days(4)]).await;
        let twice = writer.commit(list(1, &["a", "b", "a"])).await.unwrap();
        assert_eq!((twice.new_sessions, twice.new_units), (2, 2));
        let no_such_list = list(9, &["a"]);
        let together = tokio::join!(
            writer.commit(list(2, &["b", "c"])),
            writer.commit(list(1, &["c"])),
            writer.commit(no_such_list)
        );
        together.2.unwrap_err();
        let again = writer.commit(list(2, &["b", "c", "d"])).await.unwrap();
        let before = |effect: &Result<Effect, _>| effect.as_ref().map_or(0, |effect| effect.new_sessions);
        assert_eq!(before(&together.0) + before(&together.1) + again.new_sessions, 2, "c and d");
        writer.close().await;
        let writer = location.open_writer().await.unwrap();
        let later = writer.commit(list(1, &["d", "e", "a"])).await.unwrap();
        assert_eq!(later.new_sessions, 1);
        let mut reader = location.open_reader().await.unwrap();
        assert_eq!(reader.counts().await.unwrap().sessions_total, 5);
        let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap()).collect();
        assert!(files.iter().all(|file| file.file_name() != "known.tmp"), "{files:?}");
        writer.close().await;
    }

    /// After a restart or a retry, days that still cannot be listed are probed again.
    #[tokio::test]
    async fn days_that_were_probed_in_parts_are_not_asked_for_again() {
        let (_directory, location, writer) = planned(&[days(3), days(4)]).await;
        let probe =
            |from, to| Change::ProbeDays { window: WindowId(1), days: april(from, to), sessions: (1, 9) };
        let parts = vec![april(3, 11), april(12, 20)];
        for change in [
            list(1, &["a"]),
            empty_page(1),
            Change::FailList { list: ListId(2), failed: failed() },
            probe(3, 20),
            Change::SplitRange { range: RangeId(2), parts, expected_pages: 9 },
            empty_page(2),
            empty_page(3),
            probe(3, 20),
        ] {
            writer.commit(change).await.unwrap();
        }
        let mut reader = location.open_reader().await.unwrap();
        assert!(
            reader.pending_ranges(WindowId(1), RangeId::default(), 9).await.unwrap().is_empty(),
            "all of them are there"
        );
        let complete = reader.sessions_after(Place::default(), false, 9, 9).await.unwrap();
        assert_eq!(complete.len(), 1);
        writer.commit(probe(3, 22)).await.unwrap();
        let pending = reader.pending_ranges(WindowId(1), RangeId::default(), 9).await.unwrap();
        let days: Vec<_> = pending.iter().map(|range| range.chain.days).collect();
        assert_eq!(days, [april(21, 21), april(22, 22)]);
        let complete = reader.sessions_after(Place::default(), false, 9, 9).await.unwrap();
        assert!(complete.is_empty(), "something of it is still to come");
        writer.close().await;
    }

    /// The effects that changes report add up to what is stored: progress is counted from them.
    #[tokio::test]
    async fn what_is_done_and_begins_again_is_counted_once() {
        let (_directory, location, writer) = planned(&[days(3), days(4)]).await;
        let probe =
            |from, to| Change::ProbeDays { window: WindowId(1), days: april(from, to), sessions: (1, 9) };
        let page_then = |range, items: usize, then| {
            let segments = [Segment::of_items(&vec!["{}"; items], 1), None, None];
            Change::MessagesPage(MessagesPage::new(position(RangeId(range), 0), then, segments))
        };
        let page = |range, items| page_then(range, items, Then::End);
        let kept = |range| {
            vec![(RangeId(range), Restored::Items(Kind::Deleted, Segment::of_items(&["{}"; 5], 1).unwrap()))]
        };
        let mut reader = location.open_reader().await.unwrap();
        let (mut settled, mut items, mut most_kept) = ([0; 3], Items::default(), 0);
        for mut change in [
            list(1, &["a", "b", "c"]),
            page_then(1, 7, Then::Unfinished),
            page(1, 3),
            Change::Compared { unit: UnitId(1), as_of: None, restored: Vec::new() },
            page_then(2, 2, Then::Unfinished),
            Change::SplitRange { range: RangeId(2), parts: vec![days(3)], expected_pages: 0 },
            page(2, 1),
            probe(3, 3),
            page_then(4, 2, Then::Unfinished),
            page(4, 1),
            Change::Compared { unit: UnitId(4), as_of: None, restored: kept(4) },
            Change::FailRange { range: RangeId(5), failed: failed() },
            probe(3, 4),
            page(7, 4),
            list(2, &["a", "b"]),
            page(10, 9),
        ] {
            if let Change::Compared { unit, as_of, .. } = &mut change {
                let stale = Change::Compared { unit: *unit, as_of: *as_of, restored: kept(1) };
                assert_eq!(writer.commit(stale).await.unwrap(), Effect::default(), "it has changed since");
                *as_of = reader.last_commit_of(*unit).await.unwrap();
            }
            let effect = writer.commit(change).await.unwrap();
            let Settled { sessions_done, units_done, units_failed } = effect.settled;
            let more = [sessions_done, units_done, units_failed];
            settled.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            items.0.iter_mut().zip(effect.items.0).for_each(|(sum, more)| *sum += more);
            most_kept = items.0[2].max(most_kept);
            let counts = reader.counts().await.unwrap();
            let there = [counts.sessions_done, counts.units_done, counts.units_failed];
            assert_eq!(settled.map(i64::cast_unsigned), there);
            assert_eq!(items.0.map(i64::cast_unsigned), counts.items());
        }
        assert_eq!(most_kept, 5);
        writer.close().await;
    }

    /// The list replaces them: pages in flight for them would then belong to no range.
    #[tokio::test]
    async fn probed_ranges_wait_for_the_list_of_their_window() {
        let (_directory, location, writer) = planned(&[days(3), days(4)]).await;
        let probe = Change::ProbeDays { window: WindowId(1), days: april(3, 3), sessions: (1, 9) };
        let next = Some(PageToken { token: "x".to_owned(), at: "2026-05-01T00:00:00Z".parse().unwrap() });
        let session = ListedSession { zoom_id: "b".to_owned(), info: "{}".to_owned() };
        let first_page = Change::ListPage { page: position(ListId(2), 0), next, sessions: vec![session] };
        let mut reader = location.open_reader().await.unwrap();
        let mut pending = async || {
            let ranges = reader.pending_ranges(WindowId(1), RangeId::default(), 9).await.unwrap();
            ranges.into_iter().map(|range| (range.session_id, range.chain.days)).collect::<Vec<_>>()
        };
        for change in [list(1, &["a", "c"]), probe, first_page] {
            writer.commit(change).await.unwrap();
        }
        let range = |session: &str, days| (session.to_owned(), days);
        assert_eq!(pending().await, [range("b", days(4))]);
        writer.commit(list(2, &["a"])).await.unwrap();
        writer.commit(Change::EndList { list: ListId(2) }).await.unwrap();
        assert_eq!(pending().await, [range("c", april(3, 3)), range("b", days(4)), range("a", days(4))]);
    }
}
