"""What results hold, shared by those that write and those that read them. No torch."""
