//! What comes in masses, written in few statements: the messages pages of a group of changes, and the sessions of a
//! list page. Each statement is a trip to SQLite's own thread and back, which costs more than the writing.

use serde_json::json;
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::writer::{Effect, ListedSession, PageOf};
use super::{CaptureError, Segment};

type Tx<'a> = Transaction<'a, Sqlite>;

/// A messages page as it stands in a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessagesPage<'a> {
    pub page: &'a PageOf,
    pub query: &'a str,
    pub segments: &'a [Option<Segment>; 3],
    pub repeats: u64,
}

/// Stores pages of different chains, each with the place where its chain goes on. Their segments stand one after the
/// other from `offset` on; `commit` is the number of the commit.
pub(super) async fn messages_pages(
    tx: &mut Tx<'_>,
    commit: i64,
    pages: &[MessagesPage<'_>],
    mut offset: u64,
) -> Result<Effect, CaptureError> {
    let mut segments = Vec::new();
    for page in pages {
        for (kind, segment) in page.segments.iter().enumerate() {
            let Some(segment) = segment else { continue };
            segments.push((page.page, kind, segment, offset));
            offset += segment.data.len() as u64;
        }
    }
    // In the order of the table, so that fewer of its pages are rewritten: one byte in a hundred of all that is written.
    segments.sort_unstable_by_key(|(page, kind, ..)| (page.chain, page.seq, *kind));
    if !segments.is_empty() {
        // A range that has been replaced while its page was on the way (its unit was listed again) takes none.
        let mut insert = QueryBuilder::new(
            "INSERT INTO pages (range, seq, kind, items, raw_len, crc32, offset, length) SELECT * FROM (",
        );
        insert.push_values(&segments, |mut row, (page, kind, segment, offset)| {
            row.push_bind(page.chain)
                .push_bind(page.seq)
                .push_bind(*kind as i64)
                .push_bind(i64::from(segment.items))
                .push_bind(segment.raw_len as i64)
                .push_bind(i64::from(segment.crc32))
                .push_bind(*offset as i64)
                .push_bind(segment.data.len() as i64);
        });
        insert.push(") WHERE column1 IN (SELECT id FROM ranges)");
        insert.build().persistent(false).execute(&mut **tx).await?;
    }
    for page in pages {
        unknown_members(tx, "range", page.page).await?;
    }
    let places: Vec<_> = pages
        .iter()
        .map(|MessagesPage { page, query, repeats, .. }| {
            let next = page.next.as_ref();
            json!({
                "range": page.chain, "pages": page.seq + 1, "token": next.map(|next| &next.token),
                "at": next.map(|next| next.at.to_string()), "query": next.map(|_| query), "repeats": repeats,
            })
        })
        .collect();
    sqlx::query(
        "UPDATE ranges SET pages = p.value ->> 'pages', next_token = p.value ->> 'token', token_at = p.value ->> 'at',
             query = p.value ->> 'query', repeats = repeats + (p.value ->> 'repeats'),
             state = iif(p.value ->> 'token' IS NULL, 'done', 'pending')
         FROM json_each(?) AS p WHERE ranges.id = p.value ->> 'range'",
    )
    .bind(json!(places).to_string())
    .execute(&mut **tx)
    .await?;
    let ended: Vec<i64> =
        pages.iter().filter(|page| page.page.next.is_none()).map(|page| page.page.chain).collect();
    if ended.is_empty() { Ok(Effect::default()) } else { settle(tx, commit, &ended).await }
}

/// Brings the units of these ranges up to date. A unit is what its ranges are: pending while one is, else failed if one
/// is, else not found if all are.
pub(super) async fn settle(tx: &mut Tx<'_>, commit: i64, ranges: &[i64]) -> Result<Effect, CaptureError> {
    let units: Vec<(String, i64)> = sqlx::query_as(
        "UPDATE units SET settled = ?2, state = (
             SELECT CASE WHEN sum(r.state = 'pending') > 0 THEN 'pending'
                         WHEN sum(r.state = 'failed') > 0 THEN 'failed'
                         WHEN sum(r.state = 'done') = 0 THEN 'not_found'
                         ELSE 'done' END
             FROM ranges r WHERE r.unit = units.id)
         WHERE id IN (SELECT unit FROM ranges WHERE id IN (SELECT value FROM json_each(?1)))
         RETURNING state, session",
    )
    .bind(json!(ranges).to_string())
    .bind(commit)
    .fetch_all(&mut **tx)
    .await?;
    let mut effect = Effect::default();
    let mut sessions = Vec::new();
    for (state, session) in units {
        match state.as_str() {
            "pending" => {}
            "failed" => effect.units_failed += 1,
            _ => {
                effect.units_done += 1;
                sessions.push(session);
            }
        }
    }
    if !sessions.is_empty() {
        let done: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM (SELECT DISTINCT value AS id FROM json_each(?)) s WHERE NOT EXISTS
                 (SELECT 1 FROM units u WHERE u.session = s.id AND u.state IN ('pending', 'failed'))",
        )
        .bind(json!(sessions).to_string())
        .fetch_one(&mut **tx)
        .await?;
        effect.sessions_done = done as u64;
    }
    Ok(effect)
}

/// Stores a list page: sessions, and a unit with its range for each that is new in that window.
pub(super) async fn list_page(
    tx: &mut Tx<'_>,
    page: &PageOf,
    sessions: &[ListedSession],
) -> Result<Effect, CaptureError> {
    let window: i64 = sqlx::query_scalar("SELECT window FROM lists WHERE id = ?")
        .bind(page.chain)
        .fetch_one(&mut **tx)
        .await?;
    let mut effect = Effect::default();
    if !sessions.is_empty() {
        effect = list_sessions(tx, window, sessions).await?;
    }
    unknown_members(tx, "list", page).await?;
    sqlx::query("UPDATE lists SET pages = ?, next_token = ?, token_at = ?, state = ? WHERE id = ?")
        .bind(page.seq + 1)
        .bind(page.next.as_ref().map(|next| &next.token))
        .bind(page.next.as_ref().map(|next| next.at.to_string()))
        .bind(if page.next.is_some() { "pending" } else { "done" })
        .bind(page.chain)
        .execute(&mut **tx)
        .await?;
    Ok(effect)
}

async fn list_sessions(
    tx: &mut Tx<'_>,
    window: i64,
    sessions: &[ListedSession],
) -> Result<Effect, CaptureError> {
    let last: i64 =
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM sessions").fetch_one(&mut **tx).await?;
    // The info of the latest window that lists a session wins; what loses, or is there already, is not written.
    let mut upsert = QueryBuilder::new("INSERT INTO sessions (zoom_id, info) ");
    upsert.push_values(sessions, |mut row, session| {
        row.push_bind(&session.zoom_id).push_bind(&session.info);
    });
    upsert.push(
        " ON CONFLICT (zoom_id) DO UPDATE SET info = excluded.info
          WHERE info <> excluded.info
          AND NOT EXISTS (SELECT 1 FROM units u WHERE u.session = sessions.id AND u.listed AND u.window > ",
    );
    upsert.push_bind(window).push(")");
    upsert.build().persistent(false).execute(&mut **tx).await?;
    let zoom_ids: Vec<&str> = sessions.iter().map(|session| &session.zoom_id[..]).collect();
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT s.id FROM json_each(?) AS listed CROSS JOIN sessions s ON s.zoom_id = listed.value",
    )
    .bind(json!(zoom_ids).to_string())
    .fetch_all(&mut **tx)
    .await?;
    let ids = json!(ids).to_string();
    let (new_sessions, reopened): (i64, i64) = sqlx::query_as(
        "SELECT coalesce(sum(s.id > ?2), 0),
                coalesce(sum(s.id <= ?2
                    AND NOT EXISTS (SELECT 1 FROM units u WHERE u.session = s.id AND u.state IN ('pending', 'failed'))
                    AND NOT EXISTS (SELECT 1 FROM units u WHERE u.session = s.id AND u.window = ?3 AND u.listed = 1)), 0)
         FROM (SELECT DISTINCT value AS id FROM json_each(?1)) s",
    )
    .bind(&ids)
    .bind(last)
    .bind(window)
    .fetch_one(&mut **tx)
    .await?;
    let units: Vec<(i64, bool)> = sqlx::query_as(
        "INSERT INTO units (session, window, listed)
         SELECT DISTINCT value, ?2, 1 FROM json_each(?1) WHERE true
         ON CONFLICT (session, window) DO UPDATE SET listed = 1, state = 'pending' WHERE listed = 0
         RETURNING id, EXISTS (SELECT 1 FROM ranges WHERE unit = units.id)",
    )
    .bind(&ids)
    .bind(window)
    .fetch_all(&mut **tx)
    .await?;
    let last_range: i64 =
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM ranges").fetch_one(&mut **tx).await?;
    let all: Vec<i64> = units.iter().map(|(id, _)| *id).collect();
    sqlx::query(
        "INSERT INTO ranges (unit, window, first_day, last_day)
         SELECT u.value, w.idx, w.first_day, w.last_day FROM json_each(?) u JOIN windows w ON w.idx = ?",
    )
    .bind(json!(all).to_string())
    .bind(window)
    .execute(&mut **tx)
    .await?;
    // A unit may have been probed for some days before it was listed: the whole window replaces those. They go last, so
    // that the new ranges do not get their numbers: chains of theirs may be under way.
    let probed: Vec<i64> = units.iter().filter(|(_, probed)| *probed).map(|(id, _)| *id).collect();
    if !probed.is_empty() {
        let probed = json!(probed).to_string();
        for statement in [
            "DELETE FROM pages WHERE range IN
                 (SELECT id FROM ranges WHERE unit IN (SELECT value FROM json_each(?)) AND id <= ?)",
            "DELETE FROM ranges WHERE unit IN (SELECT value FROM json_each(?)) AND id <= ?",
        ] {
            sqlx::query(statement).bind(&probed).bind(last_range).execute(&mut **tx).await?;
        }
    }
    Ok(Effect {
        new_sessions: new_sessions as u64,
        new_units: (all.len() - probed.len()) as u64,
        reopened_sessions: reopened as u64,
        ..Effect::default()
    })
}

/// Members nobody told us of; seldom any.
async fn unknown_members(tx: &mut Tx<'_>, of: &'static str, page: &PageOf) -> Result<(), CaptureError> {
    let (list, range) = if of == "list" { (Some(page.chain), None) } else { (None, Some(page.chain)) };
    for (name, value) in &page.unknown {
        sqlx::query("INSERT INTO unknown_members (list, range, seq, name, value) VALUES (?, ?, ?, ?, ?)")
            .bind(list)
            .bind(range)
            .bind(page.seq)
            .bind(name)
            .bind(value)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Change, Location, PageOf};
    use jiff::civil::date;

    fn page_of(chain: i64) -> PageOf {
        PageOf { chain, seq: 0, next: None, unknown: Vec::new() }
    }

    /// What comes back must be asked for as it was stored: an id that is found no more would have no unit.
    #[tokio::test]
    async fn every_listed_session_has_a_unit_whatever_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::in_directory(directory.path());
        let writer = location.open_writer().await.unwrap();
        let windows = vec![(date(2026, 3, 1), date(2026, 3, 28)), (date(2026, 4, 1), date(2026, 4, 28))];
        writer.commit(Change::Plan { windows, meta: Vec::new() }).await.unwrap();
        let ids =
            ["a", "A", "7", "7.0", "null", "a\0b", "a\0c", "\0", "\"\\", "\u{7f}", "größe 漢😀", " a", "%"];
        for list in [2, 1] {
            let change = Change::ListPage { page: page_of(list), sessions: listed(&ids) };
            assert_eq!(writer.commit(change).await.unwrap().new_units, ids.len() as u64);
        }
    }

    fn listed(ids: &[&str]) -> Vec<ListedSession> {
        let listed = |id: &&str| ListedSession { zoom_id: (*id).to_owned(), info: "{}".to_owned() };
        ids.iter().map(listed).collect()
    }

    /// A chain over a probed range may be under way while that is replaced: what it brings must not be taken for
    /// another range's.
    #[tokio::test]
    async fn ranges_that_replace_others_have_new_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::in_directory(directory.path());
        let writer = location.open_writer().await.unwrap();
        let days = |month| (date(2026, month, 1), date(2026, month, 28));
        let (from, to) = (date(2026, 4, 3), date(2026, 4, 3));
        for change in [
            Change::Plan { windows: vec![days(3), days(4)], meta: Vec::new() },
            Change::ListPage { page: page_of(1), sessions: listed(&["a"]) },
            Change::ProbeDays { window: 1, from, to },
        ] {
            writer.commit(change).await.unwrap();
        }
        let mut reader = location.open_reader().await.unwrap();
        let probes = reader.pending_ranges(1, 0, 9).await.unwrap();
        let probe = probes.last().unwrap().chain.id;
        writer.commit(Change::ListPage { page: page_of(2), sessions: listed(&["a", "b"]) }).await.unwrap();
        let late = Change::MessagesPage {
            page: page_of(probe),
            query: String::new(),
            segments: Default::default(),
            repeats: 0,
        };
        writer.commit(late).await.unwrap();
        let parts = vec![(from, to), (from, to)];
        let split = Change::SplitRange { range: probe, parts, expected_pages: 1 };
        assert!(writer.commit(split).await.unwrap().new_ranges.is_empty(), "it is gone");
        let replaced = reader.pending_ranges(1, probe, 9).await.unwrap();
        let whole: Vec<_> = replaced.iter().map(|range| (&range.session_id[..], range.chain.from)).collect();
        assert_eq!(whole, [("a", days(4).0), ("b", days(4).0)]);
        assert_eq!(reader.pending_ranges(1, 0, 9).await.unwrap().len(), 2, "and no others");
    }
}
