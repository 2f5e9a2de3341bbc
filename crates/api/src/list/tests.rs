use super::*;

#[test]
fn pages_join_to_the_whole_list_whatever_goes_meanwhile() {
    let all: Vec<String> = (0..25).map(|n| format!("n{n:02}")).rev().collect();
    let mut seen = Vec::new();
    let mut paging = Paging { limit: Some(10), after: None };
    loop {
        // What the last page ended with has gone: its place is still known.
        let there = all.iter().filter(|name| Some(*name) != paging.after.as_ref()).cloned();
        let page = paging.of(there.collect(), 7, String::clone);
        assert!(page.items.len() <= 10 && page.revision == 7);
        seen.extend(page.items);
        match page.next {
            Some(next) => paging.after = Some(next),
            None => break,
        }
    }
    let mut sorted = all;
    sorted.sort();
    assert_eq!(seen, sorted);
    assert_eq!(Paging::default().of(Vec::<String>::new(), 1, String::clone).next, None);
}
