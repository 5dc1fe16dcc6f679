//! The people who write and the words they write with, in many scripts.
//!
//! Texts are appended already escaped for JSON: most of a message is text, and a second pass to escape it would cost time.

use super::encoding::{push_base64url, push_number};
use super::noise::Noise;

/// The number of people in the account; sessions share them.
const PEOPLE: u64 = 4_000;

const FIRST_NAMES: &[&str] = &[
    "Anna",
    "Boris",
    "Chloé",
    "Dmitri",
    "Elif",
    "Fatima",
    "Giulia",
    "Hiro",
    "Ingrid",
    "João",
    "Kwame",
    "Linh",
    "Marek",
    "Nadia",
    "Øyvind",
    "Priya",
    "Quentin",
    "Rosa",
    "Søren",
    "Tomáš",
    "Uma",
    "Valentina",
    "Wei",
    "Ximena",
    "Yusuf",
    "Zoë",
    "Иван",
    "Ольга",
    "محمد",
    "ليلى",
    "健太",
    "美咲",
    "अर्जुन",
    "सीता",
    "민준",
    "Νίκος",
];
const LAST_NAMES: &[&str] = &[
    "Abe", "Brown", "Costa", "Diaz", "Eriksen", "Fischer", "García", "Hansen", "Ito", "Jones", "Khan",
    "López", "Müller", "Nguyen", "O'Neill", "Petrov", "Quinn", "Rossi", "Silva", "Tanaka", "Usman",
    "Virtanen", "Wang", "Young", "Zhang",
];

const LATIN: &[&str] = &[
    "please", "review", "the", "draft", "before", "Thursday", "I", "have", "updated", "numbers", "for",
    "quarter", "thanks", "deploy", "is", "done", "meeting", "moved", "to", "three", "o'clock", "naïve",
    "café", "Straße", "customer", "asks", "whether", "we", "can", "ship", "earlier", "invoice", "again",
    "and", "it", "works", "on", "my", "machine",
];
const CYRILLIC: &[&str] = &[
    "пожалуйста",
    "проверьте",
    "отчёт",
    "до",
    "пятницы",
    "спасибо",
    "сервер",
    "снова",
    "работает",
    "встреча",
    "перенесена",
    "на",
    "завтра",
    "клиент",
    "просит",
    "скидку",
    "и",
    "мы",
    "не",
    "против",
];
const ARABIC: &[&str] = &[
    "شكرا",
    "الاجتماع",
    "غدا",
    "في",
    "الصباح",
    "يرجى",
    "مراجعة",
    "التقرير",
    "قبل",
    "الخميس",
    "العميل",
    "ينتظر",
    "الرد",
];
const CJK: &[&str] = &[
    "会議は",
    "明日の",
    "午後に",
    "変更され",
    "ました",
    "请查看",
    "附件",
    "谢谢",
    "大家",
    "확인",
    "부탁드립니다",
    "資料を",
    "更新しました",
    "已经",
    "部署完成",
];
const DEVANAGARI: &[&str] =
    &["कृपया", "रिपोर्ट", "देखें", "बैठक", "कल", "सुबह", "होगी", "धन्यवाद", "ग्राहक", "प्रतीक्षा", "कर", "रहा", "है"];
const EMOJI: &[&str] = &["😀", "🎉", "👍🏽", "🚀", "👩‍💻", "🇧🇷", "❤️", "🙏", "🔥", "✅"];
/// Escaped text, much of it not in the shortest JSON form; a client must keep it as it is.
const ESCAPED: &[&str] = &[
    "caf\\u00e9",
    "https:\\/\\/example.com\\/a\\/b",
    "\\u0041\\u0042",
    "tab\\there",
    "\\ud83d\\ude00",
    "\\u2028",
    "\\b\\f",
    "back\\\\slash",
    "\\\"quoted\\\"",
    "\\u0000",
    "caf\\u00E9",
];

/// Which person a member of a session is.
pub(super) fn person_of(session: Noise, member: u64) -> u64 {
    session.with(900).with(member).below(PEOPLE)
}

pub(super) fn push_display_name(out: &mut String, account: Noise, person: u64) {
    let noise = account.with(901).with(person);
    out.push_str(noise.with(0).pick(FIRST_NAMES));
    out.push(' ');
    out.push_str(noise.with(1).pick(LAST_NAMES));
}

/// Appends an address that is valid everywhere: ASCII, unique to the person.
pub(super) fn push_email(out: &mut String, account: Noise, person: u64) {
    let noise = account.with(902).with(person);
    out.push_str(noise.with(0).pick(&["a.user", "mail", "jane.doe", "sales", "first.last", "dev"]));
    push_number(out, person);
    out.push('@');
    out.push_str(noise.with(1).pick(&["example.com", "example.org", "corp.example.net"]));
}

pub(super) fn push_member_id(out: &mut String, account: Noise, person: u64) {
    let noise = account.with(903).with(person);
    for part in 0..3 {
        push_base64url(out, &noise.with(part).value().to_le_bytes());
    }
}

/// Appends a message text, escaped, without its quotes.
pub(super) fn push_message_text(out: &mut String, noise: Noise, account: Noise, hostile: bool, scale: u32) {
    let words = match noise.with(0).below(100) {
        0..=29 => noise.with(1).between(1, 6),
        30..=84 => noise.with(1).between(7, 38),
        _ => noise.with(1).between(39, 90),
    };
    let words = if noise.with(2).one_in(3_000) { 3_000 } else { words } * u64::from(scale);
    let script = match noise.with(3).below(20) {
        0..=11 => LATIN,
        12..=14 => CYRILLIC,
        15 => ARABIC,
        16 | 17 => CJK,
        18 => DEVANAGARI,
        _ => EMOJI,
    };
    if noise.with(4).one_in(9) {
        out.push('@');
        push_display_name(out, account, noise.with(5).below(PEOPLE));
        out.push(' ');
    }
    let escaped_at = if noise.with(6).one_in(14) { noise.with(7).below(words) } else { u64::MAX };
    let line_length = if noise.with(8).one_in(8) { noise.with(9).between(4, 12) } else { u64::MAX };
    let mut picks = noise.with(10);
    for word in 0..words {
        if word > 0 {
            out.push_str(if word % line_length == 0 { "\\n" } else { " " });
        }
        picks = picks.with(word);
        if word == escaped_at {
            out.push_str(picks.with(0).pick(ESCAPED));
        }
        out.push_str(picks.pick(script));
    }
    if noise.with(11).one_in(12) {
        out.push_str(" https://example.com/wiki/page?id=");
        push_number(out, noise.with(12).below(100_000));
        out.push_str("&ref=chat#top");
    }
    if noise.with(13).one_in(10) {
        out.push(' ');
        out.push_str(noise.with(14).pick(EMOJI));
    }
    // Legal JSON, but not valid Unicode: what a message cut in the middle of an emoji looks like.
    if hostile && noise.with(15).one_in(1_200) {
        out.push_str("\\ud83d");
    }
}
