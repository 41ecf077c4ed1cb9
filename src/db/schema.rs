//! The tables of Cinder 29 (alembic revision `9c74c1c6971f`) that Scoria reads or writes, and Scoria's
//! own. Written from `tests/fixtures/cinder-29-schema.sql`; Cinder's tables are never altered.
#![allow(missing_docs)]

diesel::table! {
    volumes (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        ec2_id -> Nullable<Text>,
        user_id -> Nullable<Text>,
        project_id -> Nullable<Text>,
        host -> Nullable<Text>,
        size -> Nullable<Integer>,
        availability_zone -> Nullable<Text>,
        status -> Nullable<Text>,
        attach_status -> Nullable<Text>,
        scheduled_at -> Nullable<Datetime>,
        launched_at -> Nullable<Datetime>,
        terminated_at -> Nullable<Datetime>,
        display_name -> Nullable<Text>,
        display_description -> Nullable<Text>,
        provider_location -> Nullable<Text>,
        provider_auth -> Nullable<Text>,
        snapshot_id -> Nullable<Text>,
        volume_type_id -> Text,
        source_volid -> Nullable<Text>,
        bootable -> Nullable<Bool>,
        provider_geometry -> Nullable<Text>,
        #[sql_name = "_name_id"]
        name_id -> Nullable<Text>,
        encryption_key_id -> Nullable<Text>,
        migration_status -> Nullable<Text>,
        replication_status -> Nullable<Text>,
        replication_extended_status -> Nullable<Text>,
        replication_driver_data -> Nullable<Text>,
        consistencygroup_id -> Nullable<Text>,
        provider_id -> Nullable<Text>,
        multiattach -> Nullable<Bool>,
        previous_status -> Nullable<Text>,
        cluster_name -> Nullable<Text>,
        group_id -> Nullable<Text>,
        service_uuid -> Nullable<Text>,
        shared_targets -> Nullable<Bool>,
        use_quota -> Bool,
    }
}

diesel::table! {
    volume_metadata (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        volume_id -> Text,
        key -> Nullable<Text>,
        value -> Nullable<Text>,
    }
}

diesel::table! {
    volume_admin_metadata (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        volume_id -> Text,
        key -> Nullable<Text>,
        value -> Nullable<Text>,
    }
}

diesel::table! {
    volume_glance_metadata (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        volume_id -> Nullable<Text>,
        snapshot_id -> Nullable<Text>,
        key -> Nullable<Text>,
        value -> Nullable<Text>,
    }
}

diesel::table! {
    volume_types (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        name -> Nullable<Text>,
        qos_specs_id -> Nullable<Text>,
        is_public -> Nullable<Bool>,
        description -> Nullable<Text>,
    }
}

diesel::table! {
    volume_type_extra_specs (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        volume_type_id -> Text,
        key -> Nullable<Text>,
        value -> Nullable<Text>,
    }
}

diesel::table! {
    quality_of_service_specs (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        specs_id -> Nullable<Text>,
        key -> Nullable<Text>,
        value -> Nullable<Text>,
    }
}

diesel::table! {
    volume_attachment (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        volume_id -> Text,
        attached_host -> Nullable<Text>,
        instance_uuid -> Nullable<Text>,
        mountpoint -> Nullable<Text>,
        attach_time -> Nullable<Datetime>,
        detach_time -> Nullable<Datetime>,
        attach_mode -> Nullable<Text>,
        attach_status -> Nullable<Text>,
        connection_info -> Nullable<Text>,
        connector -> Nullable<Text>,
    }
}

diesel::table! {
    snapshots (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        volume_id -> Text,
        user_id -> Nullable<Text>,
        project_id -> Nullable<Text>,
        status -> Nullable<Text>,
        progress -> Nullable<Text>,
        volume_size -> Nullable<Integer>,
        scheduled_at -> Nullable<Datetime>,
        display_name -> Nullable<Text>,
        display_description -> Nullable<Text>,
        provider_location -> Nullable<Text>,
        encryption_key_id -> Nullable<Text>,
        volume_type_id -> Text,
        cgsnapshot_id -> Nullable<Text>,
        provider_id -> Nullable<Text>,
        provider_auth -> Nullable<Text>,
        group_snapshot_id -> Nullable<Text>,
        use_quota -> Bool,
    }
}

diesel::table! {
    snapshot_metadata (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        snapshot_id -> Text,
        key -> Nullable<Text>,
        value -> Nullable<Text>,
    }
}

diesel::table! {
    transfers (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        volume_id -> Text,
        display_name -> Nullable<Text>,
        salt -> Nullable<Text>,
        crypt_hash -> Nullable<Text>,
        expires_at -> Nullable<Datetime>,
        no_snapshots -> Nullable<Bool>,
        source_project_id -> Nullable<Text>,
        destination_project_id -> Nullable<Text>,
        accepted -> Nullable<Bool>,
    }
}

diesel::table! {
    services (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        host -> Nullable<Text>,
        binary -> Nullable<Text>,
        topic -> Nullable<Text>,
        report_count -> Integer,
        disabled -> Nullable<Bool>,
        availability_zone -> Nullable<Text>,
        disabled_reason -> Nullable<Text>,
        modified_at -> Nullable<Datetime>,
        rpc_current_version -> Nullable<Text>,
        object_current_version -> Nullable<Text>,
        replication_status -> Nullable<Text>,
        frozen -> Nullable<Bool>,
        active_backend_id -> Nullable<Text>,
        cluster_name -> Nullable<Text>,
        uuid -> Nullable<Text>,
    }
}

diesel::table! {
    clusters (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        name -> Text,
        binary -> Text,
        disabled -> Nullable<Bool>,
        disabled_reason -> Nullable<Text>,
        race_preventer -> Integer,
        replication_status -> Nullable<Text>,
        active_backend_id -> Nullable<Text>,
        frozen -> Bool,
    }
}

diesel::table! {
    workers (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        resource_type -> Text,
        resource_id -> Text,
        status -> Text,
        service_id -> Nullable<Integer>,
        race_preventer -> Integer,
    }
}

diesel::table! {
    quota_usages (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        project_id -> Nullable<Text>,
        resource -> Nullable<Text>,
        in_use -> Integer,
        reserved -> Integer,
        until_refresh -> Nullable<Integer>,
        race_preventer -> Nullable<Bool>,
    }
}

diesel::table! {
    reservations (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        uuid -> Text,
        usage_id -> Nullable<Integer>,
        project_id -> Nullable<Text>,
        resource -> Nullable<Text>,
        delta -> Integer,
        expire -> Nullable<Datetime>,
        allocated_id -> Nullable<Integer>,
    }
}

diesel::table! {
    quotas (id) {
        id -> Integer,
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        project_id -> Nullable<Text>,
        resource -> Text,
        hard_limit -> Nullable<Integer>,
        allocated -> Nullable<Integer>,
    }
}

diesel::table! {
    quota_classes (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        class_name -> Nullable<Text>,
        resource -> Nullable<Text>,
        hard_limit -> Nullable<Integer>,
    }
}

diesel::table! {
    messages (id) {
        id -> Text,
        project_id -> Text,
        request_id -> Nullable<Text>,
        resource_type -> Nullable<Text>,
        resource_uuid -> Nullable<Text>,
        event_id -> Text,
        message_level -> Text,
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        expires_at -> Nullable<Datetime>,
        detail_id -> Nullable<Text>,
        action_id -> Nullable<Text>,
    }
}

diesel::table! {
    groups (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        user_id -> Nullable<Text>,
        project_id -> Nullable<Text>,
        cluster_name -> Nullable<Text>,
        host -> Nullable<Text>,
        availability_zone -> Nullable<Text>,
        name -> Nullable<Text>,
        description -> Nullable<Text>,
        group_type_id -> Nullable<Text>,
        status -> Nullable<Text>,
        group_snapshot_id -> Nullable<Text>,
        source_group_id -> Nullable<Text>,
        replication_status -> Nullable<Text>,
    }
}

diesel::table! {
    group_volume_type_mapping (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Integer,
        volume_type_id -> Text,
        group_id -> Text,
    }
}

diesel::table! {
    group_snapshots (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        group_id -> Text,
        user_id -> Nullable<Text>,
        project_id -> Nullable<Text>,
        name -> Nullable<Text>,
        description -> Nullable<Text>,
        status -> Nullable<Text>,
        group_type_id -> Nullable<Text>,
    }
}

diesel::table! {
    backups (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        volume_id -> Text,
        user_id -> Nullable<Text>,
        project_id -> Nullable<Text>,
        host -> Nullable<Text>,
        availability_zone -> Nullable<Text>,
        display_name -> Nullable<Text>,
        display_description -> Nullable<Text>,
        container -> Nullable<Text>,
        status -> Nullable<Text>,
        fail_reason -> Nullable<Text>,
        service_metadata -> Nullable<Text>,
        service -> Nullable<Text>,
        size -> Nullable<Integer>,
        object_count -> Nullable<Integer>,
        parent_id -> Nullable<Text>,
        temp_volume_id -> Nullable<Text>,
        temp_snapshot_id -> Nullable<Text>,
        num_dependent_backups -> Nullable<Integer>,
        snapshot_id -> Nullable<Text>,
        data_timestamp -> Nullable<Datetime>,
        restore_volume_id -> Nullable<Text>,
        encryption_key_id -> Nullable<Text>,
    }
}

diesel::table! {
    backup_metadata (id) {
        id -> Integer,
        backup_id -> Text,
        key -> Nullable<Text>,
        value -> Nullable<Text>,
        deleted -> Nullable<Bool>,
    }
}

diesel::table! {
    group_type_specs (id) {
        id -> Integer,
        key -> Nullable<Text>,
        value -> Nullable<Text>,
        group_type_id -> Text,
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
    }
}

diesel::table! {
    consistencygroups (id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        id -> Text,
        user_id -> Nullable<Text>,
        project_id -> Nullable<Text>,
        host -> Nullable<Text>,
        availability_zone -> Nullable<Text>,
        name -> Nullable<Text>,
        description -> Nullable<Text>,
        volume_type_id -> Nullable<Text>,
        status -> Nullable<Text>,
        cgsnapshot_id -> Nullable<Text>,
        source_cgid -> Nullable<Text>,
        cluster_name -> Nullable<Text>,
    }
}

diesel::table! {
    image_volume_cache_entries (id) {
        image_updated_at -> Nullable<Datetime>,
        id -> Integer,
        host -> Text,
        image_id -> Text,
        volume_id -> Text,
        size -> Integer,
        last_used -> Datetime,
        cluster_name -> Nullable<Text>,
    }
}

diesel::table! {
    encryption (encryption_id) {
        created_at -> Nullable<Datetime>,
        updated_at -> Nullable<Datetime>,
        deleted_at -> Nullable<Datetime>,
        deleted -> Nullable<Bool>,
        cipher -> Nullable<Text>,
        control_location -> Text,
        key_size -> Nullable<Integer>,
        provider -> Text,
        volume_type_id -> Text,
        encryption_id -> Text,
    }
}

diesel::table! {
    alembic_version (version_num) {
        version_num -> Text,
    }
}

diesel::table! {
    scoria_operations (id) {
        id -> BigInt,
        unique_id -> Text,
        method -> Text,
        backend_host -> Text,
        cluster -> Nullable<Text>,
        resource_type -> Nullable<Text>,
        resource_id -> Nullable<Text>,
        request -> Text,
        reply_queue -> Nullable<Text>,
        reply_msg_id -> Nullable<Text>,
        deadline -> Nullable<Datetime>,
        state -> Text,
        outcome -> Nullable<Text>,
        outcome_detail -> Nullable<Text>,
        reply -> Nullable<Text>,
        replied_at -> Nullable<Datetime>,
        owner -> Text,
        owner_host -> Text,
        epoch -> BigInt,
        lease_until -> Datetime,
        accepted_at -> Datetime,
        updated_at -> Datetime,
        closed_at -> Nullable<Datetime>,
    }
}

diesel::table! {
    scoria_operation_steps (operation_id, resource_id) {
        operation_id -> BigInt,
        resource_id -> Text,
        step -> Text,
        data -> Nullable<Text>,
        epoch -> BigInt,
        updated_at -> Datetime,
    }
}

diesel::table! {
    scoria_rbd_clients (site_fsid, address) {
        site_fsid -> Text,
        address -> Text,
        owner -> Text,
        owner_host -> Text,
        pid -> Integer,
        recorded_at -> Datetime,
    }
}

diesel::allow_tables_to_appear_in_same_query!(volumes, snapshots, volume_types, groups, group_type_specs);
