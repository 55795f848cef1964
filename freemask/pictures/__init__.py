"""Pictures for people: sheets of maps, the explorer's files, masks as a zip."""
