//! The error table of DESIGN.md, cell by cell: each failure is injected at the port by the number of its step, and its
//! effect is asserted through the store's verbs.

use std::sync::Arc;

use baleen_fault_injection::{CrashState, Errno, Fate, Operation, SimulatedDisk, Subsets};
use baleen_oci::{DiffId, Digest, ImageId};
use baleen_store::{
    ContainerFact, Desired, Durability, ImageFact, LayerFact, LayerKey, Owner, Partial, PullFact, PullLayer, Store,
    StoreError, TagFact, Txn, WriteBack,
};

fn open(disk: &SimulatedDisk) -> Store {
    let (store, opened) = Store::open(Arc::new(disk.clone()), *b"a store of tests").expect("the store opens");
    assert_eq!(opened.missing, Vec::<String>::new());
    store
}

/// A store with image `old` of layer `base`, tagged `app:1`, and container `c0` of it; its steps begin at 0.
fn store_with_image() -> (SimulatedDisk, Store) {
    let disk = SimulatedDisk::new();
    let store = open(&disk);
    add_layer(&store, "base", Durability::Cheapest).expect("a layer");
    add_image(&store, "old", "base", "app:1", Durability::Cheapest).expect("an image");
    add_container(&store, "c0", "old").expect("a container");
    disk.settle();
    (disk, store)
}

fn digest(text: &str) -> Digest {
    Digest::sha256_of(text.as_bytes())
}

fn image(config: &str) -> ImageId {
    ImageId(digest(config))
}

fn manifest(config: &str) -> String {
    format!("manifest of {config}")
}

fn key(text: &str) -> LayerKey {
    LayerKey::new(DiffId(digest(text)))
}

fn layer(text: &str) -> LayerFact {
    LayerFact {
        key: key(text),
        blob: digest(&format!("blob of {text}")),
        blob_size_bytes: 10,
        tar_size_bytes: 20,
        unpacked_size_bytes: 5000,
        entries: 1,
        recipe_size_bytes: 1,
        implied_directories: false,
    }
}

/// Gives up on an error of the disk as an extraction does: with that error, named.
fn extract(store: &Store, partial: &Partial, text: &str) -> Result<(), StoreError> {
    let disk = store.disk();
    let write = || {
        disk.create_dir(partial.dir(), b"fs", 0o755)?;
        let fs = disk.open_dir(partial.dir(), b"fs")?;
        let file = disk.create_file(&fs, b"file", 0o644)?;
        disk.write_at(&file, &text.bytes().cycle().take(5000).collect::<Vec<u8>>(), 0)?;
        disk.write_back(&file, 0, 0, WriteBack::Start)
    };
    write().map_err(|source: std::io::Error| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => StoreError::FullDisk { path: "a layer".to_owned(), source },
        _ => StoreError::Io { action: "extract", path: "a layer".to_owned(), source },
    })
}

fn staged_layer(store: &Store, text: &str, durability: Durability) -> Result<Txn, StoreError> {
    let partial = store.begin_partial(&layer(text).blob)?;
    let mut txn = store.begin_with(durability)?;
    extract(store, &partial, text)?;
    txn.stage_layer(partial, layer(text));
    Ok(txn)
}

fn add_layer(store: &Store, text: &str, durability: Durability) -> Result<(), StoreError> {
    let pulled = PullLayer { blob: layer(text).blob, blob_size_bytes: 10, key: key(text) };
    store.begin_pull(PullFact { manifest: digest(&format!("pull of {text}")), layers: vec![pulled] })?;
    staged_layer(store, text, durability)?.commit()
}

fn staged_image(
    store: &Store,
    config: &str,
    layer: &str,
    tag: &str,
    durability: Durability,
) -> Result<Txn, StoreError> {
    let mut txn = store.begin_with(durability)?;
    txn.stage_blob(&digest(config), config.as_bytes())?;
    txn.stage_blob(&digest(&manifest(config)), manifest(config).as_bytes())?;
    txn.store_image(ImageFact {
        id: image(config),
        manifest: Some(digest(&manifest(config))),
        layers: vec![key(layer)],
    });
    txn.set_tag(TagFact { name: tag.to_owned(), image: image(config), set_at_seconds: 5 })?;
    Ok(txn)
}

fn add_image(store: &Store, config: &str, layer: &str, tag: &str, durability: Durability) -> Result<(), StoreError> {
    staged_image(store, config, layer, tag, durability)?.commit()
}

fn add_container(store: &Store, id: &str, config: &str) -> Result<(), StoreError> {
    let mut txn = store.begin()?;
    let fact = container(id, config, Desired::Created);
    txn.stage_container(fact, |dir| {
        dir.file("config.json", 0o600, &[b'{'; 5000])?;
        dir.dir("upper", 0o755, 0, 0)?;
        dir.dir("work", 0o700, 0, 0)
    })?;
    txn.commit()
}

fn container(id: &str, config: &str, desired: Desired) -> ContainerFact {
    ContainerFact { id: id.to_owned(), name: format!("name of {id}"), image: image(config), desired }
}

fn set_tag(store: &Store, name: &str, config: &str) -> Result<(), StoreError> {
    let mut txn = store.begin()?;
    txn.set_tag(TagFact { name: name.to_owned(), image: image(config), set_at_seconds: 6 })?;
    txn.commit()
}

/// A verb that stages something, and a look whether that is there.
struct Verb {
    name: &'static str,
    run: fn(&Store, Durability) -> Result<(), StoreError>,
    is_there: fn(&Store) -> bool,
}

const STAGING_VERBS: [Verb; 3] = [
    Verb {
        name: "layer",
        run: |store, durability| add_layer(store, "top", durability),
        is_there: |store| store.layer(&key("top")).is_some(),
    },
    Verb {
        name: "image",
        run: |store, durability| add_image(store, "new", "base", "app:2", durability),
        is_there: |store| store.image(&image("new")).is_some() || store.tag("app:2").is_some(),
    },
    Verb {
        name: "container",
        run: |store, _| add_container(store, "c1", "old"),
        is_there: |store| store.container("c1").is_some(),
    },
];

/// The steps of a verb whose description passes, from a run in which nothing fails.
fn steps(run: impl Fn(&Store) -> Result<(), StoreError>, wanted: impl Fn(&str) -> bool) -> Vec<u64> {
    let (disk, store) = store_with_image();
    run(&store).expect("nothing fails");
    let described = disk.recording().described();
    let mut steps: Vec<u64> = described.into_iter().filter(|(_, what)| wanted(what)).map(|(step, _)| step).collect();
    steps.dedup();
    assert!(!steps.is_empty(), "no step to fail");
    steps
}

fn is_of_log(what: &str) -> bool {
    what.contains("/wal/")
}

fn is_sync(what: &str) -> bool {
    what.starts_with("sync ") || what.starts_with("barrier ")
}

/// What was stored before is intact, and nothing lies around.
fn assert_old_things_intact(store: &Store, what: &str) {
    assert_eq!(store.tag("app:1").map(|tag| tag.image), Some(image("old")), "{what}");
    assert_eq!(store.read_blob(&digest("old")).expect(what), b"old");
    store.layer_dir(&key("base")).expect(what);
    store.container_dir("c0").expect(what);
    let owners = store.owners().expect(what);
    let nobodys: Vec<_> = owners.iter().filter(|owned| owned.owner == Owner::Nobody).collect();
    assert!(nobodys.is_empty(), "{what}: {nobodys:?}");
}

fn assert_nothing_is_staged(disk: &SimulatedDisk, what: &str) {
    let listing = disk.describe();
    let staged: Vec<_> = listing.lines().filter(|line| line.starts_with("/staging/") && *line != "/staging/").collect();
    let partial: Vec<_> =
        listing.lines().filter(|line| line.starts_with("/partial/") && *line != "/partial/").collect();
    assert!(staged.is_empty() && partial.is_empty(), "{what}: {staged:?} {partial:?}");
}

/// The disk after a power cut now, nothing kept that was not durable.
fn after_a_cut(disk: &SimulatedDisk) -> SimulatedDisk {
    let recording = disk.recording();
    let nothing = recording.states(recording.steps(), &Subsets::few(1)).into_iter();
    let is_nothing = |state: &CrashState| state.fates.iter().all(|fate| *fate == Fate::Lost);
    recording.reboot(&nothing.into_iter().find(is_nothing).expect("one state keeps nothing"))
}

#[test]
fn a_full_disk_or_quota_fails_the_transaction_that_stages_and_nothing_else() {
    for verb in STAGING_VERBS {
        let staged = |what: &str| !is_of_log(what) && (what.starts_with("create ") || what.starts_with("write "));
        for step in steps(|store| (verb.run)(store, Durability::Cheapest), staged) {
            for errno in [Errno::NOSPC, Errno::DQUOT] {
                let what = format!("{}, step {step}: {errno}", verb.name);
                let (disk, store) = store_with_image();
                disk.fail_step(step, errno);
                let error = (verb.run)(&store, Durability::Cheapest).expect_err(&what);
                assert!(matches!(error, StoreError::FullDisk { .. }), "{what}: {error:?}");
                assert!(!store.writes_stopped() && !(verb.is_there)(&store), "{what}");
                assert_nothing_is_staged(&disk, &what);
                assert_old_things_intact(&store, &what);
                disk.clear_faults();
                (verb.run)(&store, Durability::Cheapest).expect("once there is room it works");
                assert!((verb.is_there)(&open(&after_a_cut(&disk))), "{what}: and is durable");
            }
        }
    }
}

#[test]
fn an_error_of_the_disk_while_staging_drops_that_staging() {
    for verb in STAGING_VERBS {
        let staged = |what: &str| !is_of_log(what) && (what.starts_with("create ") || what.starts_with("write "));
        for step in steps(|store| (verb.run)(store, Durability::Cheapest), staged) {
            let what = format!("{}, step {step}", verb.name);
            let (disk, store) = store_with_image();
            disk.fail_step(step, Errno::IO);
            let error = (verb.run)(&store, Durability::Cheapest).expect_err(&what);
            assert!(matches!(error, StoreError::Io { .. }), "{what}: {error:?}");
            assert!(!store.writes_stopped() && !(verb.is_there)(&store), "{what}");
            assert_nothing_is_staged(&disk, &what);
            assert_old_things_intact(&store, &what);
            (verb.run)(&store, Durability::Cheapest).expect("done again it works");
            assert!((verb.is_there)(&open(&after_a_cut(&disk))), "{what}: and is durable");
        }
    }
}

#[test]
fn a_failed_barrier_drops_every_staging_of_that_moment_and_each_succeeds_by_a_sync_of_each_file() {
    type Stage = fn(&Store) -> Result<Txn, StoreError>;
    let layer: Stage = |store| staged_layer(store, "top", Durability::Cheapest);
    let image: Stage = |store| staged_image(store, "new", "base", "app:2", Durability::Cheapest);
    // Beside an image that syncs its own files: nothing but the store tells it of the failure.
    let other: Stage = |store| staged_image(store, "other", "base", "app:4", Durability::Cheapest);
    let fails = |first: Stage, second: Stage, fault: Option<(u64, Errno)>| {
        let (disk, store) = store_with_image();
        let (first, second) = (first(&store).expect("it is staged"), second(&store).expect("it is staged"));
        if let Some((step, errno)) = fault {
            disk.fail_step(step, errno);
        }
        (disk, store, first.commit(), second.commit())
    };
    for (pair, first, second) in
        [("layer, image", layer, image), ("image, layer", image, layer), ("images", other, image)]
    {
        let (disk, _, committed, too) = fails(first, second, None);
        committed.and(too).expect("nothing fails");
        let described = disk.recording().described();
        // The first commit ends with the sync of its record.
        let own = described.iter().take_while(|(_, what)| !is_of_log(what));
        let barriers: Vec<u64> = own.filter(|(_, what)| is_sync(what)).map(|(step, _)| *step).collect();
        assert!(!barriers.is_empty());
        for step in barriers {
            for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT] {
                let what = format!("{pair}, step {step}: {errno}");
                let (disk, store, first, second) = fails(first, second, Some((step, errno)));
                assert!(matches!(first, Err(StoreError::StagingDropped)), "{what}: {first:?}");
                assert!(matches!(second, Err(StoreError::StagingDropped)), "{what}: {second:?}");
                assert!(!store.writes_stopped(), "{what}");
                assert!(store.layer(&key("top")).is_none() && store.images().len() == 1, "{what}");
                assert_nothing_is_staged(&disk, &what);
                assert_old_things_intact(&store, &what);

                let late = staged_image(&store, "late", "base", "app:3", Durability::EachFile).expect("staged anew");
                late.commit().expect("what was staged after the failure is not concerned");
                add_layer(&store, "top", Durability::EachFile).expect("the layer, each file synced");
                add_image(&store, "new", "base", "app:2", Durability::EachFile).expect("the image, each file synced");
                let store = open(&after_a_cut(&disk));
                assert!(store.layer(&key("top")).is_some() && store.tag("app:2").is_some(), "{what}");
                assert_old_things_intact(&store, &what);
            }
        }
    }
}

#[test]
fn a_write_back_that_failed_before_the_barrier_is_met_by_it_on_new_kernels_and_old() {
    for old_kernel in [false, true] {
        let (disk, store) = store_with_image();
        disk.lose_barrier_errors(old_kernel);
        disk.fail_nth(Operation::WriteBack, 0, Errno::IO); // The extraction's: it only starts, so it says nothing.
        let staged = staged_layer(&store, "top", Durability::Cheapest).expect("the error comes later");
        let result = staged.commit();
        assert!(matches!(result, Err(StoreError::StagingDropped)), "old kernel: {old_kernel}: {result:?}");
        disk.clear_faults();
        add_layer(&store, "top", Durability::EachFile).expect("the layer, each file synced");
        assert!(open(&after_a_cut(&disk)).layer(&key("top")).is_some());
    }
}

#[test]
fn a_full_disk_never_forbids_a_removal() {
    let (disk, store) = store_with_image();
    add_image(&store, "new", "base", "app:2", Durability::Cheapest).expect("an image");
    // More removals than the rest of one segment holds records.
    let names: Vec<String> = (0..100).map(|number| format!("name:{number}")).collect();
    for some in names.chunks(50) {
        let mut txn = store.begin().expect("a transaction");
        for name in some {
            txn.set_tag(TagFact { name: name.clone(), image: image("old"), set_at_seconds: 5 }).expect("a tag");
        }
        txn.commit().expect("tags");
    }
    disk.settle();
    disk.full_from(0);
    for name in &names {
        store.remove_tag(name).expect("a removal on a full disk");
    }
    store.change_container(container("c0", "old", Desired::Stopped)).expect("a stop on a full disk");
    store.remove_container("c0").expect("a container");
    store.remove_image(&image("old")).expect("an image");
    store.forget_pulls().expect("pulls");
    let error = set_tag(&store, "more", "new").expect_err("an addition needs its reserve");
    assert!(matches!(error, StoreError::LogFull), "{error:?}");
    assert!(!store.writes_stopped(), "what adds is refused, and nothing stops");

    assert!(store.empty_trash(u64::MAX).expect("the trash").names > 0);
    disk.set_capacity(Some(disk.used_bytes() + (512 << 10)));
    set_tag(&store, "more", "new").expect("with room for a reserve it works");
    let store = open(&after_a_cut(&disk));
    assert_eq!(store.tags().iter().map(|tag| &tag.name[..]).collect::<Vec<_>>(), ["app:2", "more"]);
    assert!(store.containers().is_empty() && store.image(&image("old")).is_none());
}

#[test]
fn after_a_failed_write_or_sync_of_the_log_nothing_is_changed_and_everything_is_read() {
    for step in steps(|store| set_tag(store, "app:1", "old"), is_of_log) {
        let what = format!("step {step}");
        let (disk, store) = store_with_image();
        add_image(&store, "new", "base", "app:2", Durability::Cheapest).expect("an image");
        disk.settle();
        disk.fail_step(step, Errno::IO);
        let error = set_tag(&store, "app:1", "new").expect_err(&what);
        assert!(matches!(error, StoreError::Io { .. }), "{what}: {error:?}");

        assert!(store.writes_stopped(), "{what}");
        let stopped = |result: Result<(), StoreError>| {
            assert!(matches!(result, Err(StoreError::WritesStopped)), "{what}: {result:?}");
        };
        stopped(set_tag(&store, "more", "old"));
        stopped(store.begin_partial(&digest("any")).map(drop));
        stopped(store.begin_pull(PullFact { manifest: digest("any"), layers: Vec::new() }).map(drop));
        stopped(store.change_container(container("c0", "old", Desired::Running)));
        stopped(store.remove_tag("app:2"));
        stopped(store.remove_image(&image("new")).map(drop));
        stopped(store.remove_container("c0"));
        stopped(store.forget_pulls().map(drop));
        stopped(store.compact());
        stopped(store.close());
        assert_eq!((store.images().len(), store.containers().len()), (2, 1), "{what}: reading goes on");
        assert_old_things_intact(&store, &what);

        // The same boot: the cache still shows the record whose sync failed.
        drop(store);
        let store = open(&disk);
        assert!(!store.writes_stopped());
        let found = store.tag("app:1").expect("the old image or the new one").image;
        assert!(found == image("old") || found == image("new"), "{what}");
        assert_eq!(open(&after_a_cut(&disk)).tag("app:1").expect("a tag").image, found, "{what}: what was shown stays");
        set_tag(&store, "app:1", "new").expect("the store takes records again");
        assert_eq!(open(&after_a_cut(&disk)).tag("app:1").expect("a tag").image, image("new"), "{what}");
    }
}

#[test]
fn a_tree_that_cannot_follow_the_log_stops_the_writes_and_the_next_opening_mends_it() {
    for verb in STAGING_VERBS {
        let published = |what: &str| what.starts_with("rename ") && !what.contains(" to /trash/");
        for step in steps(|store| (verb.run)(store, Durability::Cheapest), published) {
            let what = format!("{}, step {step}", verb.name);
            let (disk, store) = store_with_image();
            disk.fail_step(step, Errno::IO);
            let result = (verb.run)(&store, Durability::Cheapest);
            assert!(result.is_err() && store.writes_stopped(), "{what}: {result:?}");
            drop(store);
            for disk in [disk.clone(), after_a_cut(&disk)] {
                let store = open(&disk);
                assert!((verb.is_there)(&store), "{what}: its record was durable");
                assert_old_things_intact(&store, &what);
            }
        }
    }
}

#[test]
fn a_disk_that_turns_read_only_is_read_and_says_why_it_takes_nothing() {
    for verb in STAGING_VERBS {
        let count = steps(|store| (verb.run)(store, Durability::Cheapest), |_| true).into_iter().max().unwrap_or(0);
        for step in 0..=count {
            let what = format!("{}, read-only from step {step}", verb.name);
            let (disk, store) = store_with_image();
            disk.read_only_from(step);
            let done = (verb.run)(&store, Durability::Cheapest);
            assert_eq!(store.read_blob(&digest("old")).expect(&what), b"old");
            store.layer_dir(&key("base")).expect(&what);
            assert!(store.tag("app:1").is_some() && store.container("c0").is_some(), "{what}");
            assert!(set_tag(&store, "more", "old").is_err(), "{what}");
            drop(store);
            let refused = Store::open(Arc::new(disk.clone()), *b"a store of tests").map(drop);
            assert!(matches!(refused, Err(StoreError::Io { .. })), "{what}: {refused:?}");

            disk.clear_faults(); // Mounted anew.
            let store = open(&disk);
            assert!(done.is_err() || (verb.is_there)(&store), "{what}: what was acknowledged is there");
            assert_old_things_intact(&store, &what);
        }
    }
}

#[test]
fn a_blob_that_cannot_be_read_is_named_and_a_damaged_one_is_found_and_mended() {
    let (disk, store) = store_with_image();
    disk.fail_nth(Operation::Read, 0, Errno::IO);
    let error = store.read_blob(&digest("old")).expect_err("the disk fails");
    assert!(matches!(&error, StoreError::Io { path, .. } if path.contains(&digest("old").hex())), "{error:?}");
    assert_eq!(store.read_blob(&digest("old")).expect("once"), b"old");

    disk.flip_bits(&format!("/blobs/sha256/{}", digest("old").hex()), 1, 0x40).expect("a flipped bit");
    let error = store.read_blob(&digest("old")).expect_err("it is damaged");
    assert!(matches!(error, StoreError::BlobCorrupt { .. }), "{error:?}");
    add_image(&store, "old", "base", "app:1", Durability::Cheapest).expect("pulled again");
    assert_eq!(open(&after_a_cut(&disk)).read_blob(&digest("old")).expect("it is whole"), b"old");
}

#[test]
fn reads_that_give_less_than_was_asked_for_change_nothing() {
    for seed in 1..=20 {
        let (disk, store) = store_with_image();
        disk.short_reads(Some(seed));
        for verb in STAGING_VERBS {
            (verb.run)(&store, Durability::Cheapest).unwrap_or_else(|error| panic!("{}: {error}", verb.name));
        }
        drop(store);
        let store = open(&disk);
        assert!(STAGING_VERBS.iter().all(|verb| (verb.is_there)(&store)), "seed {seed}");
        assert_old_things_intact(&store, &format!("seed {seed}"));
    }
}
