"""What a report needs of Lightning."""
