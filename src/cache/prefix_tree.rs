//! The longest of many prefixes that a key begins with, found at a cost that follows the key alone, however many there are.
//!
//! A radix tree: each node stands for what leads to it, its children differ in their first byte.

/// Values by prefix.
#[derive(Debug)]
pub struct PrefixTree<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    /// What stands between the parent and this node; empty only at the root.
    label: Box<[u8]>,
    value: Option<T>,
    /// In the order of their first bytes.
    children: Vec<Node<T>>,
}

impl<T> Default for PrefixTree<T> {
    fn default() -> PrefixTree<T> {
        PrefixTree { root: Node::new(&[], None) }
    }
}

impl<T> PrefixTree<T> {
    /// The value of the longest prefix of `key`.
    pub fn longest(&self, key: &[u8]) -> Option<&T> {
        let (mut node, mut rest) = (&self.root, key);
        let mut best = node.value.as_ref();
        while let Some(&first) = rest.first() {
            let Some(child) = node.child(first) else { break };
            let Some(below) = rest.strip_prefix(&*child.label) else { break };
            best = child.value.as_ref().or(best);
            (node, rest) = (child, below);
        }
        best
    }

    /// The value of exactly this prefix.
    pub fn get(&self, prefix: &[u8]) -> Option<&T> {
        let (mut node, mut rest) = (&self.root, prefix);
        while let Some(&first) = rest.first() {
            node = node.child(first)?;
            rest = rest.strip_prefix(&*node.label)?;
        }
        node.value.as_ref()
    }

    /// The value that was there before.
    pub fn insert(&mut self, prefix: &[u8], value: T) -> Option<T> {
        self.root.insert(prefix, value)
    }

    pub fn remove(&mut self, prefix: &[u8]) -> Option<T> {
        self.root.remove(prefix)
    }
}

impl<T> Node<T> {
    fn new(label: &[u8], value: Option<T>) -> Node<T> {
        Node { label: label.into(), value, children: Vec::new() }
    }

    fn first(&self) -> u8 {
        self.label.first().copied().unwrap_or(0)
    }

    fn place(&self, first: u8) -> Result<usize, usize> {
        self.children.binary_search_by_key(&first, Node::first)
    }

    fn child(&self, first: u8) -> Option<&Node<T>> {
        self.children.get(self.place(first).ok()?)
    }

    /// `rest` is what is left of the prefix behind this node. As deep as a prefix is long.
    fn insert(&mut self, rest: &[u8], value: T) -> Option<T> {
        let Some(&first) = rest.first() else { return self.value.replace(value) };
        let place = self.place(first);
        let Some(child) = place.ok().and_then(|at| self.children.get_mut(at)) else {
            let at = place.unwrap_or_else(|at| at);
            self.children.insert(at, Node::new(rest, Some(value)));
            return None;
        };
        let shared = child.label.iter().zip(rest).take_while(|(a, b)| a == b).count();
        child.split(shared);
        child.insert(rest.get(shared..).unwrap_or_default(), value)
    }

    /// Cuts the label after `shared` bytes, unless that is all of it.
    fn split(&mut self, shared: usize) {
        let Some((head, tail)) = self.label.split_at_checked(shared).filter(|(_, tail)| !tail.is_empty()) else {
            return;
        };
        let (head, tail): (Box<[u8]>, Box<[u8]>) = (head.into(), tail.into());
        let below = Node { label: tail, value: self.value.take(), children: std::mem::take(&mut self.children) };
        self.label = head;
        self.children.push(below);
    }

    fn remove(&mut self, rest: &[u8]) -> Option<T> {
        let Some(&first) = rest.first() else { return self.value.take() };
        let at = self.place(first).ok()?;
        let child = self.children.get_mut(at)?;
        let removed = child.remove(rest.strip_prefix(&*child.label)?)?;
        if child.is_needless() {
            self.children.remove(at);
        } else {
            child.join();
        }
        Some(removed)
    }

    fn is_needless(&self) -> bool {
        self.value.is_none() && self.children.is_empty()
    }

    /// A node that only leads to its one child becomes one with it.
    fn join(&mut self) {
        if self.value.is_some() || self.children.len() != 1 {
            return;
        }
        if let Some(only) = self.children.pop() {
            self.label = [&*self.label, &*only.label].concat().into();
            self.value = only.value;
            self.children = only.children;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn naive<'m>(map: &'m BTreeMap<Vec<u8>, u32>, key: &[u8]) -> Option<&'m u32> {
        map.iter().filter(|(prefix, _)| key.starts_with(prefix)).max_by_key(|(prefix, _)| prefix.len()).map(|(_, v)| v)
    }

    fn nodes<T>(node: &Node<T>) -> usize {
        1 + node.children.iter().map(nodes).sum::<usize>()
    }

    #[test]
    fn the_longest_prefix_wins_and_the_empty_one_is_for_all() {
        let mut tree = PrefixTree::default();
        for prefix in ["user:", "user:session:", "us", "product:"] {
            assert_eq!(tree.insert(prefix.as_bytes(), prefix), None);
        }
        for (key, found) in [
            ("user:session:1", Some("user:session:")),
            ("user:session:", Some("user:session:")),
            ("user:session", Some("user:")),
            ("user", Some("us")),
            ("u", None),
            ("", None),
            ("orders:1", None),
        ] {
            assert_eq!(tree.longest(key.as_bytes()).copied(), found, "{key}");
        }
        tree.insert(b"", "all");
        assert_eq!(tree.longest(b"orders:1"), Some(&"all"));
        assert_eq!(tree.longest(b""), Some(&"all"));
        assert_eq!(tree.remove(b"user:"), Some("user:"));
        assert_eq!(tree.longest(b"user:1"), Some(&"us"));
    }

    proptest! {
        #[test]
        fn it_finds_what_a_scan_finds(
            steps in prop::collection::vec((any::<bool>(), "[ab:]{0,6}", any::<u32>()), 0..60),
            keys in prop::collection::vec("[ab:]{0,8}", 20),
        ) {
            let (mut tree, mut map) = (PrefixTree::default(), BTreeMap::new());
            for (insert, prefix, value) in steps {
                let prefix = prefix.into_bytes();
                if insert {
                    prop_assert_eq!(tree.insert(&prefix, value), map.insert(prefix, value));
                } else {
                    prop_assert_eq!(tree.remove(&prefix), map.remove(&prefix));
                }
                for key in &keys {
                    prop_assert_eq!(tree.longest(key.as_bytes()), naive(&map, key.as_bytes()));
                    prop_assert_eq!(tree.get(key.as_bytes()), map.get(key.as_bytes()));
                }
                prop_assert!(nodes(&tree.root) <= 2 * map.len() + 1, "nothing is left of what was removed");
            }
        }
    }
}
