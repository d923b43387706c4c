"""What a third party writes to extend Catena: two stages, a filter, a scorer."""
