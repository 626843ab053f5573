"""Result files, found and read into records that hold together."""
