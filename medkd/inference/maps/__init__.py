"""Maps of one called slide, in the formats of the programs that people look at slides with."""

from medkd.inference.maps.write import (
    MAP_FILES,
    MapKind,
    check_map_kinds,
    map_files,
    write_maps,
)

__all__ = ["MAP_FILES", "MapKind", "check_map_kinds", "map_files", "write_maps"]
