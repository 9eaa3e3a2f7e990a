//! The cases by theme. Each leaves what it has made behind, so that the tree can be looked at afterwards.

mod attributes;
mod contents;
mod names;
mod stable;

use super::{Case, Stage};

macro_rules! all {
    ($($theme:ident::$case:ident,)*) => {
        pub(super) const ALL: &[Case] =
            &[$(Case { name: concat!(stringify!($theme), "::", stringify!($case)), play: $theme::$case },)*];
    };
}

all! {
    names::a_name_is_made_found_and_removed,
    names::what_is_not_there_or_of_the_wrong_kind_is_refused,
    names::directories_are_removed_when_they_are_empty,
    names::a_file_has_as_many_names_as_it_has_links,
    names::symbolic_links_are_followed_and_loops_are_an_error,
    names::a_rename_replaces_a_file_of_the_same_kind_and_no_other,
    names::a_rename_that_must_not_replace_does_not,
    names::an_exchange_swaps_files_and_directories,
    names::a_directory_cannot_be_moved_into_itself,
    names::names_of_one_file_renamed_to_each_other_both_stay,
    names::what_is_open_is_the_same_file_after_a_rename,
    names::a_thousand_names_are_listed_once_each,
    names::long_and_odd_names_are_kept_as_they_are,
    names::a_tree_is_sixty_four_directories_deep,
    contents::what_is_written_in_pieces_that_fit_nothing_is_read_back,
    contents::a_file_larger_than_a_request_is_there_when_it_is_closed,
    contents::nothing_is_read_at_the_end_and_behind_it,
    contents::two_who_have_a_file_open_see_each_others_writes,
    contents::who_has_not_opened_for_it_may_not_read_or_write,
    contents::appenders_write_behind_each_other,
    contents::truncating_and_growing_leaves_zeros,
    contents::opening_to_truncate_empties_a_file_for_all,
    contents::a_write_far_behind_the_end_leaves_a_hole,
    contents::holes_are_found_and_punched,
    contents::space_is_allocated_with_and_without_the_size,
    contents::a_part_is_copied_from_one_file_to_another,
    contents::direct_and_ordinary_reads_and_writes_agree,
    contents::many_write_to_places_of_their_own_in_one_file,
    contents::an_unlinked_file_lives_while_it_is_open,
    attributes::modes_and_owners_are_what_they_were_set_to,
    attributes::times_are_set_to_the_nanosecond_even_before_1970,
    attributes::a_write_moves_the_times_of_the_file_and_a_name_those_of_the_directory,
    attributes::extended_attributes_are_set_listed_and_removed,
    attributes::pipes_sockets_and_devices_are_made,
    attributes::space_is_told,
    stable::what_a_file_sync_was_asked_for_is_on_the_host,
    stable::what_was_written_with_dsync_is_on_the_host_when_the_write_returns,
    stable::a_sync_of_all_reaches_every_file_and_directory,
}
